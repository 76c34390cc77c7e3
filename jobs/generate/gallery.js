"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const posts = JSON.parse(byId("data").textContent);
  const PAGE = 60;
  // ё is found by е, and a phrase goes on over the end of a line.
  const fold = (text) => text.toLowerCase().replaceAll("ё", "е").replace(/\s/g, " ");
  for (const post of posts) post.f = fold(post.t);

  // Favourites stay in this browser. A page opened from a file or in a private window may have no storage.
  const key = "bugurt:" + facts.ref;
  let stars = new Set();
  try {
    const kept = JSON.parse(localStorage.getItem(key) || "[]");
    if (Array.isArray(kept)) stars = new Set(kept.filter(Number.isInteger));
  } catch { /* they last as long as the page then */ }
  const keep = () => {
    try {
      localStorage.setItem(key, JSON.stringify([...stars].sort((a, b) => a - b)));
    } catch { /* as above */ }
    byId("starred").textContent = String(stars.size);
  };

  const state = { terms: [], prompt: null, order: "index", onlyStars: false };
  let shown = [];
  let drawn = 0;

  const element = (name, attributes, ...children) => {
    const made = document.createElement(name);
    for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
    made.append(...children); // strings become text nodes: nothing of a post is ever parsed as HTML
    return made;
  };

  const parse = (query) => {
    const terms = [];
    for (const [, minus, quoted, word] of fold(query).matchAll(/(-?)(?:"([^"]+)"?|(\S+))/g)) {
      const text = quoted ?? word;
      if (text && text !== "-") terms.push({ text, without: minus === "-" });
    }
    return terms;
  };

  const marked = (text, terms) => {
    // Places to mark; folding keeps lengths for all but a few letters, and then nothing is marked.
    const folded = fold(text);
    if (!terms.length || folded.length !== text.length) return [text];
    const spans = [];
    for (const { text: term, without } of terms) {
      if (without) continue;
      for (let at = folded.indexOf(term); at >= 0; at = folded.indexOf(term, at + term.length)) spans.push([at, at + term.length]);
    }
    spans.sort((a, b) => a[0] - b[0]);
    const parts = [];
    let done = 0;
    for (const [from, to] of spans) {
      if (from < done) continue;
      parts.push(text.slice(done, from), element("mark", {}, text.slice(from, to)));
      done = to;
    }
    parts.push(text.slice(done));
    return parts;
  };

  const copyText = async (text, button) => {
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      // No clipboard without a secure address (a plain http link): select and copy the old way.
      const area = element("textarea", { readonly: "" });
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    const label = button.dataset.label ?? (button.dataset.label = button.textContent);
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = label; }, 1200);
  };

  const card = (post) => {
    const text = element("p", { class: "text" });
    text.append(...marked(post.t, state.terms));
    const star = element("button", { type: "button", "aria-label": "Favourite", "aria-pressed": String(stars.has(post.i)) }, "★");
    const copy = element("button", { type: "button", title: "Copy this post" }, "Copy");
    const told = [`#${post.i}`];
    if (post.o !== null) told.push(`${post.o} word${post.o === 1 ? '' : 's'} in a row from training`);
    const facts = element("span", { class: "dim" }, told.join(" · "));
    facts.title = [
      `score ${post.s} a token`,
      `drawn ${post.n}×`,
      post.o ? `shared with training: «${post.w}»` : "",
      post.j !== null ? `similarity ${post.j}` : "",
      post.p ? `prompt: ${post.p}` : "",
    ].filter(Boolean).join("\n");
    const made = element("article", { "data-index": String(post.i) }, text, element("footer", {}, facts, copy, star));
    made.classList.toggle("on", stars.has(post.i));
    star.addEventListener("click", () => {
      if (!stars.delete(post.i)) stars.add(post.i);
      star.setAttribute("aria-pressed", String(stars.has(post.i)));
      made.classList.toggle("on", stars.has(post.i));
      keep();
    });
    copy.addEventListener("click", () => copyText(post.t, copy));
    return made;
  };

  // Columns of our own: the browser's would move what is being read whenever more posts come.
  let columns = [];
  const fitting = () => Math.max(1, Math.min(4, Math.floor(byId("posts").clientWidth / 340)));
  const near = () => byId("end").getBoundingClientRect().top < innerHeight + 1500;
  const fill = () => {
    while (drawn < shown.length && near()) {
      for (const post of shown.slice(drawn, drawn + PAGE)) {
        columns.reduce((a, b) => (b.offsetHeight < a.offsetHeight ? b : a)).append(card(post));
        drawn += 1;
      }
    }
    byId("end").textContent = drawn < shown.length ? "…" : "";
  };
  const layOut = () => {
    columns = Array.from({ length: fitting() }, () => element("div", { class: "column" }));
    byId("posts").replaceChildren(...columns);
    drawn = 0;
    fill();
  };

  const mixed = (n) => Math.imul(n ^ (n >>> 15), 0x2c1b3c6d) >>> 0;
  const orders = {
    index: (a, b) => a.i - b.i,
    score: (a, b) => b.s - a.s || a.i - b.i,
    odd: (a, b) => a.s - b.s || a.i - b.i,
    short: (a, b) => a.t.length - b.t.length || a.i - b.i,
    long: (a, b) => b.t.length - a.t.length || a.i - b.i,
    overlap: (a, b) => (b.o ?? 0) - (a.o ?? 0) || a.i - b.i,
    random: (a, b) => mixed(a.i + 1) - mixed(b.i + 1) || a.i - b.i,
  };

  const refresh = () => {
    shown = posts.filter((post) =>
      (!state.onlyStars || stars.has(post.i)) &&
      (state.prompt === null || post.p === state.prompt) &&
      state.terms.every(({ text, without }) => post.f.includes(text) !== without));
    shown.sort(orders[state.order] ?? orders.index);
    byId("count").textContent = shown.length === posts.length ? `${posts.length} posts` : `${shown.length} of ${posts.length} posts`;
    layOut();
  };

  const prompts = [...new Set(posts.map((p) => p.p))];
  if (prompts.length > 1 && prompts.length <= 200) {
    const select = byId("prompt");
    select.append(element("option", { value: "" }, "all prompts"));
    prompts.forEach((prompt, n) => select.append(element("option", { value: String(n + 1) }, prompt || "(no prompt)")));
    select.hidden = false;
    select.addEventListener("change", () => {
      state.prompt = select.value ? prompts[Number(select.value) - 1] : null;
      refresh();
    });
  }
  let timer = 0;
  byId("query").addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => { state.terms = parse(event.target.value); refresh(); }, 120);
  });
  byId("order").addEventListener("change", (event) => { state.order = event.target.value; refresh(); });
  byId("stars").addEventListener("click", () => {
    state.onlyStars = !state.onlyStars;
    byId("stars").setAttribute("aria-pressed", String(state.onlyStars));
    refresh();
  });
  byId("copy").addEventListener("click", () => copyText(shown.map((p) => p.t).join("\n\n———\n\n"), byId("copy")));
  addEventListener("scroll", fill, { passive: true });
  addEventListener("resize", () => { if (fitting() !== columns.length) layOut(); else fill(); });

  // #q=words opens a search: a link to what somebody found.
  const start = new URLSearchParams(location.hash.slice(1)).get("q");
  if (start) { byId("query").value = start; state.terms = parse(start); }
  keep();
  refresh();
})();
