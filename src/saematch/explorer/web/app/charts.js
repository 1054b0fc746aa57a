"use strict";
// Charts by uPlot (vendor/).

(() => {
  saematch.views = {};
})();
