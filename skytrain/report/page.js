"use strict";
// The samples: a list of which only the visible rows exist, and one that is open. Texts get in by textContent alone.
(() => {
  const ROW = 46, BEYOND = 8, LONG = 2000, KEPT = 4;
  const byId = (id) => document.getElementById(id);
  const index = JSON.parse(byId("index").textContent);
  const chunks = document.querySelectorAll("script.chunk");
  const all = index.model.length;
  const list = byId("list"), rows = byId("rows"), sample = byId("sample");
  let shown = [], selected = -1, opening = 0;
  const drawn = new Map();

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  // One format for all: toLocaleString would make one a call.
  const format = new Intl.NumberFormat("en-US"), count = (number) => format.format(number);

  // Chunks, unpacked when a sample of theirs is opened; the last few are kept.
  const unpacked = new Map();
  const unpack = async (number) => {
    const packed = atob(chunks[number].textContent), raw = new Uint8Array(packed.length);
    for (let i = 0; i < raw.length; i++) raw[i] = packed.charCodeAt(i);
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const chunkOf = (i) => {
    let low = 0, high = index.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (index.starts[middle] <= i) low = middle; else high = middle - 1;
    }
    return low;
  };
  const textsOf = async (i) => {
    const number = chunkOf(i);
    const found = unpacked.get(number) ?? unpack(number);
    unpacked.delete(number);
    unpacked.set(number, found);
    if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
    return (await found)[i - index.starts[number]];
  };

  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - BEYOND);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + BEYOND);
    for (const [at, row] of drawn) {
      if (at < first || at >= last) { row.remove(); drawn.delete(at); }
    }
    for (let at = first; at < last; at++) {
      if (!drawn.has(at)) { const row = rowAt(at); drawn.set(at, row); rows.append(row); }
    }
    list.removeAttribute("aria-activedescendant");
    for (const [at, row] of drawn) {
      row.setAttribute("aria-selected", String(at === selected));
      if (at === selected) list.setAttribute("aria-activedescendant", row.id);
    }
  };
  const rowAt = (at) => {
    const i = shown[at], row = element("div", undefined, "row"), verdict = index.verdicts[index.verdict[i]];
    row.id = "row" + at;
    row.style.top = at * ROW + "px";
    row.setAttribute("role", "option");
    row.setAttribute("aria-posinset", at + 1);
    row.setAttribute("aria-setsize", shown.length);
    row.append(element("span", verdict, "verdict " + verdict));
    const name = element("span", index.problems[index.problem[i]] + " #" + index.sample[i]);
    const from = element("span", index.models[index.model[i]] + " · " + index.tasks[index.task[i]], "from");
    row.append(name, element("span", count(index.tokens[i]), "number"), from);
    row.addEventListener("click", () => open(at));
    return row;
  };

  const open = async (at) => {
    selected = at;
    if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
    if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
    draw();
    const i = shown[at], mine = ++opening;
    let texts;
    try {
      texts = await textsOf(i);
    } catch (error) {
      if (mine === opening) sample.replaceChildren(element("p", "This sample cannot be unpacked: " + error));
      return;
    }
    // Another one may have been asked for meanwhile.
    if (mine !== opening) return;
    sample.replaceChildren(...view(i, texts));
    sample.scrollTop = 0;
    sample.dataset.opened = i;
  };
  const view = (i, texts) => {
    const verdict = index.verdicts[index.verdict[i]];
    const parts = [element("h3", index.problems[index.problem[i]] + " #" + index.sample[i])];
    const about = element("p");
    about.append(element("span", verdict, "verdict " + verdict));
    const facts = [index.models[index.model[i]], index.tasks[index.task[i]], texts.part, count(index.tokens[i]) + " tokens", texts.status];
    about.append(element("span", " · " + facts.filter(Boolean).join(" · "), "quiet"));
    parts.push(about);
    if (texts.detail) parts.push(...block("detail", texts.detail));
    for (const [role, text] of texts.messages) parts.push(...block(role, text));
    if (texts.thoughts === null && texts.answer === null) {
      const why = texts.status === "missing" ? "This sample has no answer." : "Its text is not in answers.jsonl.";
      parts.push(element("p", why, "quiet"));
    } else {
      if (texts.thoughts) {
        const folded = element("details");
        folded.open = texts.thoughts.length < LONG;
        folded.append(element("summary", "thoughts, " + count(texts.thoughts.length) + " characters"), pre("thoughts", texts.thoughts));
        parts.push(folded);
      }
      parts.push(...block("answer", texts.answer));
    }
    parts.push(...block("taken for the answer", texts.taken ?? "(nothing)"));
    parts.push(...block("gold", texts.gold ?? "(none: judged by tests)"));
    return parts;
  };
  const pre = (name, text) => {
    const made = element("pre", text);
    made.dataset.text = name;
    return made;
  };
  const block = (name, text) => [element("h4", name), pre(name, text)];

  const fill = (select, names, column) => {
    const counts = new Array(names.length).fill(0);
    for (const value of index[column]) counts[value]++;
    select.append(new Option("all", ""));
    if (column === "verdict" && index.verdicts.includes("correct")) select.append(new Option("all but correct", "not"));
    names.forEach((name, i) => select.append(new Option(name + " (" + count(counts[i]) + ")", i)));
  };
  const filter = () => {
    const [model, task, verdict] = ["model", "task", "verdict"].map((id) => byId(id).value);
    const problem = byId("problem").value.trim().toLowerCase();
    const right = index.verdicts.indexOf("correct");
    const matches = index.problems.map((id) => id.toLowerCase().includes(problem));
    shown = [];
    for (let i = 0; i < all; i++) {
      if (model !== "" && index.model[i] !== +model) continue;
      if (task !== "" && index.task[i] !== +task) continue;
      if (verdict === "not" ? index.verdict[i] === right : verdict !== "" && index.verdict[i] !== +verdict) continue;
      if (matches[index.problem[i]]) shown.push(i);
    }
    byId("found").textContent = count(shown.length) + " of " + count(all) + " samples";
    selected = -1;
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    rows.style.height = shown.length * ROW + "px";
    list.scrollTop = 0;
    draw();
  };

  const keys = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || !shown.length) return;
    event.preventDefault();
    open(Math.min(shown.length - 1, Math.max(0, selected + keys[event.key])));
  });
  let due = false;
  list.addEventListener("scroll", () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  });
  new ResizeObserver(draw).observe(list);
  for (const id of ["model", "task", "verdict"]) byId(id).addEventListener("change", filter);
  byId("problem").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());

  fill(byId("model"), index.models, "model");
  fill(byId("task"), index.tasks, "task");
  fill(byId("verdict"), index.verdicts, "verdict");
  sample.append(element("p", "Open a sample by a click, or by the arrow keys in the list.", "quiet"));
  byId("browser").hidden = false;
  filter();
})();
