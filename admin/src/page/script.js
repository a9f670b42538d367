"use strict";
// Loads the page again every few seconds, and replaces what has changed. The page is complete without this.
(() => {
  const interval = 5000;
  const byId = (id) => document.getElementById(id);
  const button = byId("pause");
  let paused = false;
  let timer = 0;

  function schedule() {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(load, interval);
  }

  function load() {
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname);
    request.responseType = "document";
    request.setRequestHeader("Accept", "text/html");
    request.timeout = 2 * interval;
    request.onloadend = () => {
      const page = request.status === 200 ? request.response : null;
      if (page && page.getElementById("main")) show(page);
      else fail();
      schedule();
    };
    request.send();
  }

  function show(page) {
    document.body.classList.remove("stale");
    document.title = page.title;
    byId("icon").href = page.getElementById("icon").getAttribute("href");
    byId("note").replaceWith(page.getElementById("note"));
    for (const id of ["state", "mode"]) {
      const now = page.getElementById(id);
      // Only a change is to be read out.
      if (byId(id).textContent !== now.textContent) byId(id).textContent = now.textContent;
      byId(id).className = now.className;
    }
    const main = byId("main");
    const selected = getSelection();
    if (!selected.isCollapsed && main.contains(selected.anchorNode)) return;
    const focused = main.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = [...main.querySelectorAll(".wide")].map((one) => [one.id, one.scrollLeft]);
    main.replaceWith(page.getElementById("main"));
    for (const [id, left] of scrolled) if (byId(id)) byId(id).scrollLeft = left;
    if (focused && byId(focused)) byId(focused).focus({ preventScroll: true });
    document.body.dataset.updates = Number(document.body.dataset.updates || 0) + 1;
  }

  function fail() {
    if (document.body.classList.contains("stale")) return;
    document.body.classList.add("stale");
    const note = byId("note");
    note.textContent = "No answer. " + note.textContent;
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) clearTimeout(timer);
    else load();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !paused) load();
    else clearTimeout(timer);
  });
  schedule();
})();
