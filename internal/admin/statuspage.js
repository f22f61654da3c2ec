"use strict";
// Asks for the page again and again, and puts in what has changed. The node
// makes all of the text, escaped; nothing here builds markup from data.
(() => {
  const every = 2000, patience = 5000;
  const banner = document.getElementById("stale");
  let answered = Date.now(), title = document.title, why = "", timer = 0, busy = false;

  const span = (ms) => {
    const s = Math.max(0, Math.round(ms / 1000));
    if (s < 60) return s + " s";
    const m = Math.floor(s / 60);
    return m < 60 ? m + " min " + (s % 60) + " s" : Math.floor(m / 60) + " h " + (m % 60) + " min";
  };

  const tell = () => {
    document.body.classList.toggle("is-stale", why !== "");
    banner.hidden = why === "";
    const text = why && why + " What you see is " + span(Date.now() - answered) + " old.";
    if (banner.textContent !== text) banner.textContent = text;
    const shown = why ? "No answer · " + title : title;
    if (document.title !== shown) document.title = shown;
  };

  // Where the keyboard is, and how far a table is scrolled, outlives the change.
  const put = (fresh) => {
    for (const part of fresh.querySelectorAll("[data-part]")) {
      const old = document.getElementById(part.id);
      if (!old || old.innerHTML === part.innerHTML) continue;
      const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
      const scrolled = [...old.querySelectorAll(".scroll")].map((e) => [e.id, e.scrollLeft]);
      old.replaceChildren(...[...part.childNodes].map((n) => document.importNode(n, true)));
      for (const [id, left] of scrolled) {
        const e = document.getElementById(id);
        if (e) e.scrollLeft = left;
      }
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    }
    title = fresh.title;
  };

  const ask = async () => {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    const stop = new AbortController();
    const limit = setTimeout(() => stop.abort(), patience);
    const name = document.body.dataset.node;
    try {
      const resp = await fetch(location.pathname, { cache: "no-store", signal: stop.signal });
      const text = await resp.text();
      if (!resp.ok) throw new Error("HTTP " + resp.status);
      const fresh = new DOMParser().parseFromString(text, "text/html");
      // After an upgrade of the node, its page needs its own style and script.
      if (fresh.body.dataset.build !== document.body.dataset.build) return location.reload();
      put(fresh);
      answered = Date.now();
      why = "";
    } catch (err) {
      why = err.message.startsWith("HTTP ")
        ? name + " answers with an error (" + err.message + ")."
        : name + " does not answer: its process may be down, or the network to it. Ask another node.";
    } finally {
      clearTimeout(limit);
      busy = false;
    }
    tell();
    timer = setTimeout(ask, every);
  };

  setInterval(() => { if (why) tell(); }, 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  timer = setTimeout(ask, every);
})();
