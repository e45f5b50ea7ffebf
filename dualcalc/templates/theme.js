"use strict";
// In the head and blocking, so that a page never flashes in the other theme.
(function () {
  let chosen = null;
  try { chosen = localStorage.getItem("dualcalc-theme"); } catch { /* storage may be refused for file: */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
