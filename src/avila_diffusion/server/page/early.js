// A classic script, run before anything is drawn: a page in the other colours or language would flash.
(function () {
  "use strict";
  var root = document.documentElement;
  try {
    var theme = localStorage.getItem("avila.theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    var language = localStorage.getItem("avila.language") || navigator.language || "en";
    root.lang = /^pt/i.test(language) ? "pt-BR" : "en";
  } catch (error) {
    // Without storage the system's own choice holds.
  }
})();
