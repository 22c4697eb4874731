// What the pages share: elements without markup, figures, and charts that are drawn when they are seen.
"use strict";
const charts = (() => {
  function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  function figure(value, digits = 2) {
    if (value === null || value === undefined) return "";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) {
      return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
    }
    return String(Number(value.toPrecision(digits)));
  }

  const drawn = new Map(); // element -> [chart, options]

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    const words = ["ink", "dim", "line", "card", "reference", "candidate", "noise", "floor", "diverged"];
    const found = Object.fromEntries(words.map((word) => [word, of(word)]));
    found.heat = [0, 1, 2, 3].map((n) => of(`heat-${n}`));
    found.sans = of("sans");
    return found;
  }

  // options: a function of the colours, so that a chart can be drawn again in others.
  // key: of what is drawn, (words, colour by its name, "solid", "dashed" or "box").
  function chart(caption, note, options, key = []) {
    const box = el("div", { class: "chart", role: "img", "aria-label": `${caption}. ${note}` });
    const shown = el("figure", {}, el("figcaption", {}, caption, el("span", { class: "dim" }, note)),
      key.length > 1 ? el("ul", { class: "legend" }, key.map(([name, colour, look]) => el("li", {}, swatch(colour, look), name))) : null, box);
    box.draw = () => draw(box, options);
    waiting.observe(box);
    return shown;
  }

  function swatch(colour, look) {
    const made = el("i", { class: look });
    made.style[look === "box" ? "background" : "borderColor"] = `var(--${colour})`;
    return made;
  }

  function draw(box, options) {
    waiting.unobserve(box);
    if (!drawn.has(box)) {
      drawn.set(box, [echarts.init(box, null, { renderer: "svg" }), options]);
      sized.observe(box);
    }
    paint(box);
  }

  function paint(box) {
    const [instance, options] = drawn.get(box);
    const c = colours();
    instance.setOption({ animation: false, textStyle: { fontFamily: c.sans }, ...options(c) }, { notMerge: true });
    instance.getZr().flush();
  }

  const waiting = new IntersectionObserver(
    (seen) => seen.filter((one) => one.isIntersecting).forEach((one) => one.target.draw()),
    { rootMargin: "200px" },
  );
  const sized = new ResizeObserver((changes) => changes.forEach((one) => drawn.get(one.target)?.[0].resize()));
  const repaint = () => [...drawn.keys()].filter((box) => box.isConnected).forEach(paint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  function axis(c, more) {
    return {
      axisLine: { show: false },
      axisTick: { show: false },
      axisLabel: { color: c.dim, fontSize: 11, hideOverlap: true },
      splitLine: { lineStyle: { color: c.line, width: 1, opacity: 0.7 } },
      nameTextStyle: { color: c.dim, fontSize: 11 },
      nameLocation: "middle",
      ...more,
    };
  }

  // ECharts would take a string for markup; an element whose text we set is none.
  const tip = (c, lines) => ({
    trigger: "item",
    confine: true,
    backgroundColor: c.card,
    borderColor: c.line,
    extraCssText: "box-shadow:none;white-space:normal",
    formatter: (at) => el("div", { class: "tip" }, lines(at).map((line) => el("div", {}, line))),
  });

  // Paper has another width than the window, and charts are drawn before it is known: there they scale.
  function scale(on) {
    for (const svg of document.querySelectorAll(".chart svg")) {
      if (on) svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
      else svg.removeAttribute("viewBox");
    }
  }

  return { el, figure, chart, axis, tip, repaint, scale };
})();
