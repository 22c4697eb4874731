// Draws what a reader opens: trees, tensors, charts. Every text goes in as text (textContent), never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { verdicts, severity } = data;
  const FIRST = 60; // rows drawn at first
  const SHOWN = 200; // rows added at a time
  const PRINTED = 12; // diverged tensors whose charts are printed, roots first
  const ROOT = "root";
  const { el, figure, chart, axis, tip, repaint, scale } = charts;

  // ------------------------------------------------------------------------------------------------------------ tools

  const mark = (verdict) =>
    verdict
      ? el("span", { class: `mark v-${verdict}`, "aria-hidden": "true" }, verdicts[verdict])
      : el("span", { class: "mark none", "aria-hidden": "true" }, "·");

  const power = (log) => figure(10 ** log, 2);
  const names = (t) => t.reference_name ?? t.candidate_name ?? "?";

  function labels(t) {
    const [one, two] = [t.reference_name, t.candidate_name];
    return one && two && one !== two ? `${one} → ${two}` : names(t);
  }

  const many = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

  // ----------------------------------------------------------------------------------------------------------- charts

  // What is drawn along depth: below and above, a relative difference says no more.
  const [FLOOR, CEILING] = [1e-18, 1e3];
  const within = (value) => Math.min(Math.max(value, FLOOR), CEILING);

  // What is zero but for rounding has no size that its rounding could be relative to.
  const relative = (t) => (t.verdict === "aligned" && t.detail && !t.detail.noise32 ? undefined : t.rel_l2);

  function depthChart(caption, note, tensors) {
    const series = [
      ["float64 difference", relative, "candidate", "solid", 2],
      ["float64 rounding floor", (t) => t.detail?.floor64, "floor", "dashed", 1.5],
      ["candidate’s float32 error", (t) => t.detail?.error32, "reference", "solid", 1.5],
      ["reference’s float32 error", (t) => t.detail?.noise32, "noise", "dashed", 1.5],
    ].filter(([, value]) => tensors.some((t) => value(t) > 0));
    const bad = tensors.map((t, x) => ({ t, x })).filter(({ t }) => t.verdict !== "aligned" && t.rel_l2 > 0);
    return chart(caption, note, (c) => ({
      grid: { left: 52, right: 14, top: 26, bottom: 26 },
      tooltip: { ...tip(c, ([{ axisValue }]) => {
        const t = tensors[Number(axisValue) - 1];
        return [
          names(t), `${t.record}, ${t.verdict}${t.root ? ", root divergence" : ""}`,
          ...series.map(([name, value]) => (value(t) === undefined || value(t) === null ? null : `${name}: ${figure(value(t)) || "—"}`)),
        ];
      }), trigger: "axis", axisPointer: { lineStyle: { color: c.dim } } },
      xAxis: axis(c, { type: "category", data: tensors.map((_, n) => n + 1), splitLine: { show: false }, name: note.split(":")[0], nameGap: 12, axisLabel: { show: false } }),
      yAxis: axis(c, { type: "log", axisLabel: { color: c.dim, fontSize: 11, formatter: (value) => figure(value, 1) }, min: ({ min }) => 10 ** Math.floor(Math.log10(Math.max(min, FLOOR))), max: ({ max }) => Math.min(Math.max(max, 1), CEILING) }),
      series: [
        ...series.map(([name, value, colour, type, width]) => ({
          name, type: "line", connectNulls: true, symbol: "circle", symbolSize: 4, showSymbol: tensors.length <= 150,
          data: tensors.map((t) => (value(t) > 0 ? within(value(t)) : null)),
          lineStyle: { color: c[colour], type, width }, itemStyle: { color: c[colour] },
        })),
        {
          name: "diverged", type: "scatter", z: 5,
          data: bad.map(({ t, x }) => ({
            value: [x, within(t.rel_l2)], symbol: t.root ? "diamond" : "circle", symbolSize: t.root ? 17 : 8,
            label: t.root && bad.filter((one) => one.t.root).length <= 4
              ? { show: true, formatter: "root", position: "top", color: c.diverged, fontSize: 11, fontWeight: 700 } : undefined,
          })),
          itemStyle: { color: c.diverged, borderColor: c.card, borderWidth: 1.5 },
        },
      ],
    }), series.map(([name, , colour, type]) => [name, colour, type]));
  }

  function histogram(d) {
    const bins = d.counts.map((_, n) => `${power(d.edges[n])} … ${power(d.edges[n + 1])}`);
    const what = d.dtype === "float32" ? "float32 error" : `${d.dtype} difference`;
    const same = `${d.equal.toLocaleString("en")} of ${many(d.elements, "element")} equal`;
    const odd = d.non_finite ? `, ${d.non_finite.toLocaleString("en")} NaN or infinite on one side only` : "";
    return chart("How large the differences are", same + odd, (c) => ({
      grid: { left: 42, right: 8, top: 12, bottom: 40 },
      tooltip: tip(c, ({ seriesName, dataIndex, value }) => [seriesName, bins[dataIndex], many(value, "element")]),
      xAxis: axis(c, { type: "category", data: bins, splitLine: { show: false }, name: "size of the difference", nameGap: 24,
        axisLabel: { color: c.dim, fontSize: 11, interval: Math.max(0, Math.ceil(bins.length / 5) - 1), formatter: (_, n) => power(d.edges[n]) } }),
      yAxis: axis(c, { type: "log", min: 0.7, axisLabel: { color: c.dim, fontSize: 11, formatter: (value) => (value < 1 ? "" : figure(value, 1)) } }),
      series: [
        [what, d.counts, c.candidate],
        ["reference’s own float32 rounding", d.noise, c.noise],
      ].filter(([, counts]) => counts.length).map(([name, counts, color]) => ({
        name, type: "bar", barGap: "-100%", barCategoryGap: "8%", itemStyle: { color, opacity: 0.75 },
        data: counts.map((count) => count || null),
      })),
    }), d.noise.length ? [[what, "candidate", "box"], ["reference’s own float32 rounding", "noise", "box"]] : []);
  }

  // The range of rows (or columns) of the tensor that one row of the map stands for.
  function range(cell, cells, size) {
    const [first, last] = [Math.floor((cell * size) / cells), Math.floor(((cell + 1) * size) / cells) - 1];
    return first === last ? `${first}` : `${first}–${last}`;
  }

  function heatMap(d, shape) {
    const [rows, columns] = d.cells;
    const cells = d.heat.map((log, n) => [n % columns, Math.floor(n / columns), log]);
    const filled = cells.filter(([, , log]) => log !== null && log < 400);
    const broken = cells.filter(([, , log]) => log === 400);
    const logs = filled.map(([, , log]) => log);
    const [low, high] = logs.length ? [Math.min(...logs), Math.max(...logs)] : [0, 1];
    const column = Math.max(0, shape.findLastIndex((length) => length > 1)); // see Detail.plane
    const rowName = column > 1 ? `rows: axes 0 to ${column - 1}` : "rows: axis 0";
    const axes = column ? `${rowName}; columns: axis ${column}` : "along axis 0";
    return chart("Where they sit", `${axes}; largest of each cell, blank where equal`, (c) => ({
      grid: { left: 44, right: 70, top: 12, bottom: 34 },
      tooltip: tip(c, ({ value: [x, y, log] }) => [
        `row ${range(y, rows, d.plane[0])}, column ${range(x, columns, d.plane[1])}`,
        log === 400 ? "NaN or infinite on one side only" : `differs by up to ${power(log)}`,
      ]),
      xAxis: axis(c, { type: "category", data: [...Array(columns).keys()].map((n) => range(n, columns, d.plane[1])), splitLine: { show: false } }),
      yAxis: axis(c, { type: "category", inverse: true, data: [...Array(rows).keys()].map((n) => range(n, rows, d.plane[0])), splitLine: { show: false } }),
      visualMap: {
        seriesIndex: 0, min: low - (low === high ? 1 : 0), max: high, dimension: 2, calculable: false, right: 0, top: "middle", itemHeight: 110, itemWidth: 10,
        inRange: { color: c.heat }, text: [power(high), low === high ? "" : power(low)], textStyle: { color: c.dim, fontSize: 11 },
      },
      series: [
        { type: "heatmap", data: filled, itemStyle: { borderColor: c.card, borderWidth: rows * columns > 300 ? 0 : 1 } },
        { type: "heatmap", data: broken, itemStyle: { color: c.ink } },
      ],
    }));
  }

  function scatter(d) {
    return chart("Difference against magnitude", `${d.points.length} of ${many(d.elements, "element")}, the worst among them`, (c) => ({
      grid: { left: 52, right: 14, top: 14, bottom: 40 },
      tooltip: tip(c, ({ value: [x, y] }) => [`reference has ${power(x)}`, `differs by ${power(y)}`]),
      xAxis: axis(c, { type: "value", scale: true, name: "size in the reference", nameGap: 24, axisLabel: { color: c.dim, fontSize: 11, hideOverlap: true, formatter: power }, splitNumber: 4 }),
      yAxis: axis(c, { type: "value", scale: true, axisLabel: { color: c.dim, fontSize: 11, formatter: power } }),
      series: [{ type: "scatter", data: d.points, symbolSize: 6, itemStyle: { color: c.candidate, opacity: 0.6 } }],
    }));
  }

  function effectCharts(effect) {
    const steps = effect.reference.map((_, step) => step);
    const grid = { left: 58, right: 14, top: 16, bottom: 36 };
    const x = (c) => axis(c, { type: "category", data: steps, splitLine: { show: false }, name: "step", nameGap: 22 });
    const known = (loss) => loss !== null; // null: not finite
    const bound = effect.reference.map((loss, n) => (known(loss) ? [loss - effect.envelope[n], 2 * effect.envelope[n]] : [null, null]));
    const gaps = effect.reference.map((loss, n) => (known(loss) && known(effect.candidate[n]) && Math.abs(effect.candidate[n] - loss)) || null);
    return [
      chart("Loss", `of each step of Adam, learning rate ${effect.learning_rate}`, (c) => ({
        grid,
        tooltip: tip(c, ({ seriesName, dataIndex, value }) => [`${seriesName}, step ${dataIndex}`, figure(value, 8)]),
        xAxis: x(c), yAxis: axis(c, { type: "value", scale: true, axisLabel: { color: c.dim, fontSize: 11, formatter: (value) => figure(value, 4) } }),
        series: [
          { name: "from", type: "line", stack: "band", silent: true, symbol: "none", lineStyle: { opacity: 0 }, data: bound.map(([from]) => from) },
          { name: "envelope", type: "line", stack: "band", silent: true, symbol: "none", lineStyle: { opacity: 0 }, areaStyle: { color: c.noise, opacity: 0.35 }, data: bound.map(([, span]) => span) },
          { name: "reference", type: "line", symbolSize: 7, symbol: "circle", data: effect.reference, lineStyle: { color: c.reference, width: 2 }, itemStyle: { color: c.reference } },
          { name: "candidate", type: "line", symbolSize: 8, symbol: "emptyDiamond", data: effect.candidate, lineStyle: { color: c.candidate, width: 2, type: "dashed" }, itemStyle: { color: c.candidate } },
        ],
      }), [["reference", "reference", "solid"], ["candidate", "candidate", "dashed"]]),
      chart("How far the losses part", "beside how far rounding alone moves the reference’s", (c) => ({
        grid,
        tooltip: tip(c, ({ seriesName, dataIndex, value }) => [`${seriesName}, step ${dataIndex}`, figure(value)]),
        xAxis: x(c), yAxis: axis(c, { type: "log", axisLabel: { color: c.dim, fontSize: 11, formatter: (value) => figure(value, 1) } }),
        series: [["difference", gaps, c.candidate, "solid"], ["rounding explains", effect.envelope, c.noise, "dashed"]].map(
          ([name, values, color, type]) => ({ name, type: "line", symbol: "circle", symbolSize: 6, data: values, lineStyle: { color, type, width: 2 }, itemStyle: { color } })),
      }), [["difference", "candidate", "solid"], ["rounding explains", "noise", "dashed"]]),
    ];
  }

  const positive = (values) => values.map((value) => (value > 0 ? value : null)); // a logarithm has no room for 0

  // Lines over steps. lines: (words, steps, values, colour by its name, "solid" or "dashed").
  function stepChart(caption, note, lines, kind, digits = 3) {
    return chart(caption, note, (c) => ({
      grid: { left: 62, right: 16, top: 16, bottom: 36 },
      tooltip: tip(c, ({ seriesName, value: [step, value] }) => [`${seriesName}, step ${step}`, figure(value, digits)]),
      xAxis: axis(c, { type: "value", min: 0, splitLine: { show: false }, name: "step", nameGap: 22 }),
      yAxis: axis(c, { type: kind, scale: true, axisLabel: { color: c.dim, fontSize: 11, formatter: (value) => figure(value, kind === "log" ? 1 : 4) } }),
      series: lines.map(([name, steps, values, colour, type]) => ({
        name, type: "line", symbol: "circle", symbolSize: 4, showSymbol: steps.length <= 60,
        data: (kind === "log" ? positive(values) : values).map((value, n) => [steps[n], value]),
        lineStyle: { color: c[colour], type, width: 2 }, itemStyle: { color: c[colour] },
      })),
    }), lines.map(([name, , , colour, type]) => [name, colour, type]));
  }

  // The way of every tensor in one picture: how much of what is allowed it takes at each step; those that left first on top.
  function shareMap(tracks, at) {
    const cells = tracks.flatMap((track, y) => track.apart.map((apart, n) => [n, y, Math.log10(Math.max(apart / track.allowed[n], 1e-4) || 1e-4)]));
    const short = (name) => (name.length > 34 ? `…${name.slice(-33)}` : name);
    return chart("Which tensors leave", "the candidate’s distance over what is allowed; 1 is the limit", (c) => ({
      grid: { left: 236, right: 78, top: 12, bottom: 36 },
      tooltip: tip(c, ({ value: [n, y, log] }) => [tracks[y].name, `step ${at[n]}: ${power(log)} of what is allowed`]),
      xAxis: axis(c, { type: "category", data: at, splitLine: { show: false }, name: "step", nameGap: 22 }),
      yAxis: axis(c, { type: "category", inverse: true, data: tracks.map((track) => short(track.name)), splitLine: { show: false }, axisLabel: { color: c.dim, fontSize: 11 } }),
      visualMap: { min: -3, max: Math.max(1, ...cells.map(([, , log]) => log)), dimension: 2, calculable: false, right: 0, top: "middle", itemHeight: 110, itemWidth: 10,
        inRange: { color: c.heat }, text: [power(Math.max(1, ...cells.map(([, , log]) => log))), "0.001"], textStyle: { color: c.dim, fontSize: 11 } },
      series: [{ type: "heatmap", data: cells, itemStyle: { borderWidth: 0 } }],
    }));
  }

  function trajectoryCharts(one) {
    const steps = one.reference.map((_, n) => n + 1);
    const gap = one.reference.map((loss, n) => (loss === null || one.candidate[n] === null ? null : Math.abs(one.candidate[n] - loss)));
    const kept = one.tracks.filter((track) => track.apart.length);
    const rates = one.reference_rates.some((rate, n) => rate !== one.reference_rates[0] || one.candidate_rates[n] !== rate);
    return [
      stepChart("Loss", "of both sides, free-running", [
        ["reference", steps, one.reference, "reference", "solid"], ["candidate", steps, one.candidate, "candidate", "dashed"]], "value", 8),
      stepChart("How far the weights part", "all together, over their norm", [
        ["candidate", one.at, one.apart, "candidate", "solid"], ["envelope, the largest run", one.at, one.envelope, "noise", "solid"],
        ["allowed", one.at, one.allowed, "floor", "dashed"]], "log"),
      stepChart("How far the losses part", "free-running", [
        ["candidate", steps, gap, "candidate", "solid"], ["envelope, the largest run", steps, one.loss_envelope, "noise", "solid"],
        ["allowed", steps, one.loss_allowed, "floor", "dashed"]], "log"),
      stepChart("Each step by itself", "re-synchronised: distance of the candidate’s step from the reference’s, over its size", [
        ["candidate", steps, one.step_error, "candidate", "solid"], ["reference, moved by one unit in the last place", steps, one.step_noise, "noise", "dashed"]], "log"),
      rates ? stepChart("Learning rate", "of the parameters in no group", [
        ["reference", steps, one.reference_rates, "reference", "solid"], ["candidate", steps, one.candidate_rates, "candidate", "dashed"]], "value", 6) : null,
      kept.length ? shareMap(kept, one.at) : null,
    ].filter(Boolean);
  }

  // ---------------------------------------------------------------------------------------------------------- tensors

  const FACTS = [
    ["Judged by", (t) => t.decided_by && `${t.decided_by}${t.dtype ? `, ${t.dtype}` : ""}`],
    ["Seen", (t) => t.seen !== undefined && `${figure(t.seen, 3)}, allowed ${figure(t.allowed, 3)}`],
    ["Largest", (t) => t.max_abs !== undefined && `${figure(t.max_abs, 3)}${t.worst_index ? ` at [${t.worst_index.join(", ")}]` : ""}`],
    ["Relative L2", (t) => t.rel_l2 !== undefined && figure(t.rel_l2, 3)],
    ["float32 error", (t) => t.error_ratio !== undefined && `${figure(t.error_ratio, 3)} times the reference’s own`],
    ["Worst in", (t) => t.weights && `${t.weights} weights${t.batch ? `, batch ${t.batch}` : ""}`],
    ["Source", (t) => t.site],
    ["Diverges in", (t) => t.diverging && `${t.diverging.length} of ${many(t.comparisons, "comparison")}: ${t.diverging.slice(0, 6).join(", ")}${t.diverging.length > 6 ? " …" : ""}`],
  ];

  function worstTable(d) {
    const wide = d.noise.length || d.dtype === "float64" ? ", float64" : "";
    const columns = [["reference32", "reference, float32"], ["candidate32", "candidate, float32"], ["reference64", `reference${wide}`], ["candidate64", `candidate${wide}`]]
      .filter(([key]) => d.worst.some((one) => one[key] !== null));
    const value = (one, key) => (one[key] === null ? "none" : String(Number(one[key].toPrecision(key.endsWith("32") ? 9 : 13))));
    return el("table", { class: "numbers worst" },
      el("caption", { class: "hidden" }, "The elements that differ most"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "worst at"), columns.map(([, title]) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, d.worst.map((one) => el("tr", {}, el("th", { scope: "row", "data-label": "worst at" }, `[${one.index.join(", ")}]`),
        columns.map(([key, title]) => el("td", { "data-label": title }, value(one, key)))))));
  }

  function details(t, kept) {
    const d = t.detail;
    const facts = FACTS.map(([title, say]) => [title, say(t)]).filter(([, said]) => said);
    const floating = d?.dtype.startsWith("float"); // of integers and booleans there is only where they sit
    const charts = !d ? [] : [
      floating && d.counts.length ? histogram(d) : null,
      d.heat.some((log) => log !== null) && d.elements > 1 ? heatMap(d, t.shape ?? d.plane) : null,
      floating && d.points.length > 1 ? scatter(d) : null,
    ].filter(Boolean);
    return el("div", { class: "opened" },
      t.waived ? el("p", {}, `Waived: ${t.waived}`) : "",
      el("p", {}, t.reason),
      el("dl", { class: "facts" }, facts.map(([title, said]) => [el("dt", {}, title), el("dd", {}, said)]).flat()),
      d?.worst.length ? worstTable(d) : null,
      charts.length ? el("div", { class: "charts" }, charts) : null,
      kept || !t.shape ? null : el("p", { class: "dim" }, "This report has no details of tensors: make it with --html or --details."));
  }

  function list(root, twin) {
    const { tensors } = twin;
    const kept = tensors.some((t) => t.detail);
    const places = tensors.map((_, place) => place).sort(
      (a, b) => (tensors[b].root ?? false) - (tensors[a].root ?? false)
        || severity.indexOf(tensors[b].verdict) - severity.indexOf(tensors[a].verdict) || a - b);
    const texts = tensors.map((t) => `${t.reference_name ?? ""} ${t.candidate_name ?? ""} ${t.record} ${t.reason}`.toLowerCase());
    const found = (key) => [...new Set(tensors.map((t) => t[key]))];
    const present = [...severity].reverse().filter((verdict) => tensors.some((t) => t.verdict === verdict));
    const bad = present.filter((verdict) => verdict !== "aligned");
    const state = { text: "", verdicts: new Set(bad.length ? bad : present), stage: "", record: "", module: null };
    const rows = el("ul", { class: "rows", "aria-label": "Tensors" });
    const count = el("p", { class: "count", role: "status" });
    const more = el("button", { type: "button", class: "more", onclick: () => show(shown + SHOWN) });
    const chip = el("button", { type: "button", class: "chip module", onclick: () => set({ module: null }) });
    let matching = [];
    let shown = 0;

    function row(place) {
      const t = tensors[place];
      const button = el("button", { type: "button", class: "row", "aria-expanded": "false", onclick: () => toggle(item) },
        mark(t.verdict),
        el("span", { class: "name" }, t.root ? el("span", { class: "badge" }, ROOT) : null, el("span", { class: "id" }, labels(t)),
          el("span", { class: "hidden" }, `, ${t.verdict}`)),
        el("span", { class: "dim where" }, `${t.record}${t.shape?.length ? ` [${t.shape.join(", ")}]` : ""}`),
        el("span", { class: "figures" }, t.seen === undefined ? "" : [el("span", { class: "dim" }, "seen "), figure(t.seen), el("span", { class: "dim" }, " allowed "), figure(t.allowed)]));
      const item = el("li", { "data-place": String(place) }, button);
      return item;
    }

    function toggle(item, open = item.children.length === 1) {
      if (open && item.children.length === 1) item.append(details(tensors[item.dataset.place], kept));
      if (!open) item.querySelector(".opened")?.remove();
      item.firstChild.setAttribute("aria-expanded", String(open));
    }

    function show(upTo) {
      shown = Math.min(upTo, matching.length);
      rows.append(...matching.slice(rows.children.length, shown).map(row));
      rows.hidden = !shown;
      more.hidden = shown >= matching.length;
      more.textContent = `Show ${Math.min(SHOWN, matching.length - shown).toLocaleString("en")} more`;
      count.textContent = `${matching.length.toLocaleString("en")} of ${many(tensors.length, "tensor")}`;
    }

    function set(change) {
      Object.assign(state, change);
      const within = state.module && new Set(state.module.tensors);
      const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
      matching = places.filter((place) => {
        const t = tensors[place];
        return (within ? within.has(place) : state.verdicts.has(t.verdict))
          && (state.stage === "" || t.stage === Number(state.stage)) && (!state.record || t.record === state.record)
          && words.every((word) => texts[place].includes(word));
      });
      chip.hidden = !state.module;
      chip.replaceChildren(...(state.module ? [el("span", { class: "id" }, state.module.label), el("span", { "aria-label": "remove this filter" }, "✕")] : []));
      stages.value = state.stage;
      records.value = state.record;
      search.value = state.text;
      for (const box of boxes) box.checked = state.verdicts.has(box.value);
      rows.replaceChildren();
      show(FIRST);
    }

    const select = (label, key, options) => el("select", { "aria-label": label, onchange: (event) => set({ [key]: event.target.value }) },
      el("option", { value: "" }, label), options.map(([value, text]) => el("option", { value }, text)));
    const stages = select("all stages", "stage", twin.stages.map((stage, n) => [n, `${stage.step} ${stage.name}`]));
    const records = select("all kinds", "record", found("record").map((record) => [record, record]));
    const search = el("input", { type: "search", placeholder: "Search names and reasons", "aria-label": "Search names and reasons", oninput: (event) => set({ text: event.target.value }) });
    const boxes = [];
    const chips = present.map((verdict) => {
      const box = el("input", { type: "checkbox", value: verdict, onchange: () => set({ verdicts: new Set(boxes.filter((one) => one.checked).map((one) => one.value)) }) });
      boxes.push(box);
      return el("label", { class: `chip v-${verdict}` }, box, mark(verdict), `${verdict} ${tensors.filter((t) => t.verdict === verdict).length.toLocaleString("en")}`);
    });
    root.querySelector(".filters").append(search, stages, records, el("fieldset", { class: "chips" }, el("legend", { class: "hidden" }, "Verdicts"), chips), chip, count);
    root.querySelector(".list").append(rows, more);
    set({});

    function open(place) {
      const t = tensors[place];
      if (!matching.includes(place)) set({ text: "", stage: "", record: "", module: null, verdicts: new Set([...state.verdicts, t.verdict]) });
      if (matching.indexOf(place) >= shown) show(matching.indexOf(place) + 1);
      const item = rows.querySelector(`[data-place="${place}"]`);
      toggle(item, true);
      item.scrollIntoView({ block: "start" });
      item.firstChild.focus({ preventScroll: true });
    }

    return {
      set, open,
      // For paper: the charts of what diverged, as far as that is of use.
      print() {
        set({ text: "", stage: "", record: "", module: null });
        for (const item of [...rows.children].slice(0, PRINTED)) {
          if (tensors[item.dataset.place].verdict !== "aligned") toggle(item, true);
        }
      },
    };
  }

  // ------------------------------------------------------------------------------------------------------------ trees

  // Both trees by the WAI-ARIA tree pattern; branches are made when they are unfolded.
  function grow(holder, twin, side, choose) {
    const nodes = twin.trees[side];
    const children = nodes.map(() => []);
    nodes.forEach((node, place) => node.parent !== null && children[node.parent].push(place));
    const items = new Map();
    const list = el("ul", { role: "tree", "aria-labelledby": holder.previousElementSibling.id });
    let current = null;

    function item(place) {
      const node = nodes[place];
      const local = node.path.slice(node.parent === null || !nodes[node.parent].path ? 0 : nodes[node.parent].path.length + 1);
      const said = [local || "(root)", node.kind, node.below ?? "not compared", node.roots ? many(node.roots, "root divergence") : "", node.other === null ? "no counterpart" : ""].filter(Boolean).join(", ");
      const row = el("div", { class: `node${node.other === null ? " absent" : ""}`, title: [node.path || "(root)", node.site].filter(Boolean).join("\n"), onclick: () => { focus(place); choose(place); if (children[place].length) unfold(place); } },
        el("span", { class: "twist", "aria-hidden": "true" }, children[place].length ? "▶" : ""),
        mark(node.below),
        el("span", { class: "label" }, el("span", { class: "id" }, local || "(root)"), el("span", { class: "kind" }, node.kind)),
        node.roots ? el("span", { class: "badge" }, node.roots > 1 ? `${node.roots} roots` : ROOT) : null);
      const made = el("li", { role: "treeitem", tabindex: "-1", "aria-label": said, "aria-selected": "false", "aria-expanded": children[place].length ? "false" : null, "data-node": String(place) }, row);
      items.set(place, made);
      return made;
    }

    const isOpen = (place) => items.get(place)?.getAttribute("aria-expanded") === "true";

    // other: the tree beside, which unfolds with this one.
    function unfold(place, open = !isOpen(place), told = false) {
      const made = items.get(place);
      if (!made || !children[place].length) return;
      if (open && made.children.length === 1) made.append(el("ul", { role: "group" }, children[place].map(item)));
      if (made.children.length > 1) made.lastChild.hidden = !open;
      made.setAttribute("aria-expanded", String(open));
      if (!told && nodes[place].other !== null) tree.beside?.reveal(nodes[place].other, open);
    }

    function reveal(place, open) {
      const parent = nodes[place].parent;
      if (parent !== null && open) reveal(parent, true);
      if (open || items.has(place)) unfold(place, open, true);
    }

    function focus(place, take = true) {
      if (current !== null) items.get(current).tabIndex = -1;
      current = place;
      items.get(place).tabIndex = 0;
      if (take) items.get(place).focus();
    }

    function select(place, mate) {
      for (const [known, made] of items) {
        made.setAttribute("aria-selected", String(known === place && !mate));
        made.firstChild.classList.toggle("mate", known === place && mate);
      }
    }

    function visible() {
      return [...list.querySelectorAll("[role=treeitem]")].filter((made) => !made.closest("ul[hidden]")).map((made) => Number(made.dataset.node));
    }

    list.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const seen = visible();
      const at = seen.indexOf(current);
      const moves = {
        ArrowDown: () => seen[at + 1],
        ArrowUp: () => seen[at - 1],
        Home: () => seen[0],
        End: () => seen[seen.length - 1],
        ArrowRight: () => { if (!children[current].length) return; if (isOpen(current)) return children[current][0]; unfold(current, true); },
        ArrowLeft: () => { if (isOpen(current)) return void unfold(current, false); return nodes[current].parent ?? undefined; },
        Enter: () => void choose(current),
        " ": () => void (choose(current), unfold(current)),
        "*": () => void (nodes[current].parent === null ? [current] : children[nodes[current].parent]).forEach((place) => unfold(place, true)),
      };
      if (moves[event.key]) {
        const to = moves[event.key]();
        if (to !== undefined) focus(to);
      } else if (event.key.length === 1) {
        const wanted = event.key.toLowerCase();
        const to = [...seen.slice(at + 1), ...seen.slice(0, at)].find((place) => nodes[place].path.split(".").pop().toLowerCase().startsWith(wanted));
        if (to === undefined) return;
        focus(to);
      } else return;
      event.preventDefault();
    });

    const tree = { unfold, reveal, select, nodes, beside: null };
    const tops = nodes.map((_, place) => place).filter((place) => nodes[place].parent === null);
    list.append(...tops.map(item));
    if (tops.length) focus(tops[0], false);
    holder.append(list);
    // The way to each root divergence is open from the start; where there is none, the first branch.
    tops.forEach((place) => unfold(place, true, true));
    nodes.forEach((node, place) => { if (node.roots && children[place].length && items.has(place)) unfold(place, true, true); });
    return tree;
  }

  function trees(root, twin, tensors) {
    const grown = {};
    const choose = (side) => (place) => {
      const node = grown[side].nodes[place];
      const other = side === "reference" ? "candidate" : "reference";
      grown[side].select(place, false);
      grown[other]?.select(node.other ?? -1, true);
      tensors.set({ module: { label: node.path || "(root)", tensors: node.tensors }, text: "", stage: "", record: "" });
    };
    for (const side of ["reference", "candidate"]) grown[side] = grow(root.querySelector(`[data-side="${side}"]`), twin, side, choose(side));
    grown.reference.beside = grown.candidate;
    grown.candidate.beside = grown.reference;
  }

  // ------------------------------------------------------------------------------------------------------------- page

  const FORWARD = ["input", "activation", "logits", "output"];
  const BACKWARD = ["gradient", "activation gradient", "input gradient"];

  function depth(section, twin) {
    const drawable = (kinds) => twin.tensors.filter((t) => kinds.includes(t.record) && (t.rel_l2 !== undefined || t.detail?.error32 !== undefined));
    const parts = [
      ["Forward", "from the input to what the model returns: outputs of modules", drawable(FORWARD)],
      ["Backward", "from the loss back to the first layer: gradients", drawable(BACKWARD)],
    ].filter(([, , tensors]) => tensors.length > 1);
    section.hidden = !parts.length;
    section.querySelector(".charts").append(...parts.map((part) => depthChart(...part)));
  }

  const lists = [];

  function build(article) {
    const number = Number(article.dataset.twin);
    const twin = data.twins[number];
    const part = (name) => article.querySelector(`[data-part="${name}"]`);
    const tensors = list(part("tensors"), twin);
    lists.push(tensors);
    if (twin.trajectories.length) twin.trajectories.forEach((one, n) => part(`trajectory-${n}`).querySelector(".charts").append(...trajectoryCharts(one)));
    else depth(part("depth"), twin);
    if (twin.effect) part("effect").querySelector(".charts").append(...effectCharts(twin.effect));
    if (part("trees")) trees(part("trees"), twin, tensors);
    article.addEventListener("click", (event) => {
      const opens = event.target.closest("[data-open]");
      if (opens) tensors.open(Number(opens.dataset.open));
      const stage = event.target.closest("a[data-stage]");
      if (stage) tensors.set({ stage: stage.dataset.stage, text: "", record: "", module: null });
    });
    article.dataset.built = "";
  }

  document.querySelectorAll("article.twin").forEach(build);

  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    lists.forEach((tensors) => tensors.print());
    document.querySelectorAll(".chart").forEach((box) => box.draw());
    scale(true);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    scale(false);
    repaint();
  });
})();
