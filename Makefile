# Every target installs first when it must: on a fresh machine `make demo` and `make test` are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# JAX on the CPU preallocates nothing and needs no network; two workers fit two cores.
WORKERS ?= 2
# BLAS threads of several workers wait for each other on the same cores.
ONE := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

.PHONY: install demo test test-docs test-slow test-lowest test-highest fuzz fuzz-guided test-torch test-adapters test-wheel test-peer lint audit docs notebooks bench bench-peer bench-networks bench-targets oracle clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dualcalc needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m dualcalc.demo

test: $(STAMP)
	@echo "torch, adapters and peer tests need environments of their own: make test-torch test-adapters test-peer (skipped here)"
	@echo "what README, documentation and notebooks show is run by make test-docs"
	@command -v chromium || command -v chromium-browser || command -v google-chrome || echo "no chromium: the tests of the catalog's pages in a browser are skipped"
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not docs and not torch and not adapters and not peer"

# All that people read runs: README, documentation, notebooks, of which two have experiments on less data here.
test-docs: $(STAMP)
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) -m "docs and not slow"
	$(ONE) DUALCALC_QUICK=1 $(BIN)/python -m pytest -n $(WORKERS) --nbmake notebooks

test-slow: $(STAMP)
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) -m slow
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --nbmake notebooks/error_bounds.ipynb notebooks/features.ipynb

# The versions that pyproject.toml promises at the least (wheels of some end with Python 3.12), and the newest ones,
# pre-releases among them: the tests that call other libraries, which tests/versions.py chooses.
CHOSEN := -m pytest -v -n $(WORKERS) -p tests.versions
EXTRAS := .[cluster,plots,site,sklearn]

test-lowest: .venv-lowest/.installed
	$(ONE) .venv-lowest/bin/python $(CHOSEN) --disable-warnings

.venv-lowest/.installed: pyproject.toml tests/versions.py
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet pytest pytest-xdist hypothesis
	.venv-lowest/bin/python -m tests.versions > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/lowest.txt --editable '$(EXTRAS)'
	.venv-lowest/bin/python -m pip check
	touch $@

# No stamp: what is newest is asked each time.
test-highest:
	test -x .venv-highest/bin/python || $(PYTHON) -m venv .venv-highest
	.venv-highest/bin/python -m pip install --quiet --editable '$(EXTRAS)' pytest pytest-xdist hypothesis
	.venv-highest/bin/python -m pip install --quiet --upgrade --pre --editable . \
	    jax jaxlib sympy numpy scipy numba python-flint
	.venv-highest/bin/python -m pip check
	$(ONE) .venv-highest/bin/python $(CHOSEN)

# Acceptance F4: hours; a cache of SymPy that holds a whole pair takes a fifth less. `ARGS` is for tests/fuzz.py, as in ARGS="texts --count 1000".
fuzz: export SYMPY_CACHE_SIZE = 20000
fuzz: $(STAMP)
ifdef ARGS
	$(ONE) $(BIN)/python -m tests.fuzz $(ARGS)
else
	$(ONE) $(BIN)/python -m tests.fuzz texts --count 1000000 --jobs $(WORKERS)
	$(ONE) $(BIN)/python -m tests.fuzz mutants --count 300 --jobs $(WORKERS)
	$(ONE) $(BIN)/python -m tests.fuzz expressions --count 5000 --jobs $(WORKERS)
	$(ONE) $(BIN)/python -m tests.fuzz pairs --count 100000 --jobs $(WORKERS)
endif

# The parser and the catalog's loader under atheris, on one core; ten minutes, or ARGS="--seconds 60".
fuzz-guided: .venv-fuzz/.installed
	$(ONE) .venv-fuzz/bin/python -m tests.fuzz guided --seconds 600 $(ARGS)

.venv-fuzz/.installed: pyproject.toml
	test -x .venv-fuzz/bin/python || $(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --editable . atheris==3.0.0
	touch $@

test-torch: .venv-torch/.installed
	.venv-torch/bin/python -m pytest -m torch

.venv-torch/.installed: pyproject.toml
	test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet 'torch==2.13.0'
	.venv-torch/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

test-adapters: .venv-adapters/.installed
	.venv-adapters/bin/python -m pytest -m adapters

# torch first, and this one: others pull a build of several gigabytes.
.venv-adapters/.installed: pyproject.toml
	test -x .venv-adapters/bin/python || $(PYTHON) -m venv .venv-adapters
	.venv-adapters/bin/python -m pip install --quiet 'torch==2.13.0'
	.venv-adapters/bin/python -m pip install --quiet tinygp==0.3.1 gpjax==1.0.0 gpytorch==1.15.2
	.venv-adapters/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

# A wheel in an empty environment, outside the repository: what a user of the package has.
test-wheel: $(STAMP)
	rm -rf build/wheel && mkdir -p build/wheel/elsewhere
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet build/wheel/dualcalc-*.whl
	cd build/wheel/elsewhere && ../venv/bin/dualcalc catalog list && ../venv/bin/dualcalc catalog verify

test-peer: $(STAMP) .venv-peer/.installed
	$(BIN)/python -m pytest -m peer

.venv-peer/.installed: Makefile
	test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet neural-tangents==0.6.5 tf2jax==0.3.6 jax==0.4.30 jaxlib==0.4.30
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment of its own: what audits is none of what is audited.
audit: $(STAMP) .venv-audit/.installed
	$(BIN)/python -m tests.audit .venv-audit/bin/pip-audit

.venv-audit/.installed: Makefile
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1
	touch $@

# Run all notebooks and keep what they show.
notebooks: $(STAMP)
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --nbmake --overwrite notebooks

# Every warning is an error; the pages are in build/docs.
docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

bench: $(STAMP)
	$(BIN)/python benchmarks/kernels.py

bench-peer: $(STAMP) .venv-peer/.installed
	$(BIN)/python benchmarks/peer.py

bench-networks: $(STAMP) .venv-peer/.installed
	$(BIN)/python benchmarks/networks.py $(ARGS)

bench-targets: $(STAMP)
	$(BIN)/python benchmarks/targets.py

oracle: $(STAMP)
	$(BIN)/python -m tests.oracle

clean:
	rm -rf .venv .venv-torch .venv-adapters .venv-peer .venv-lowest .venv-highest .venv-audit .venv-fuzz build dist
