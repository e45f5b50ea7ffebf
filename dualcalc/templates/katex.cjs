// Typesets formulas while the catalog's pages are built: a line of JSON, the LaTeX, in; a line of JSON, HTML or null, out.
"use strict";
const katex = require("./vendor/katex.min.js");
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  let html = null;
  try { html = katex.renderToString(JSON.parse(line), { strict: "ignore" }); } catch { /* MathML serves */ }
  console.log(JSON.stringify(html));
});
