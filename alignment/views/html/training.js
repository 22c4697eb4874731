// Draws the learning curves of a training run.
"use strict";
(() => {
  const { runs } = JSON.parse(document.getElementById("data").textContent);
  const { figure, chart, axis, tip, repaint, scale } = charts;

  const CURVES = [
    ["Macro-F", "percent", (scores) => 100 * scores.macro_f1],
    ["Accuracy", "percent", (scores) => 100 * scores.accuracy],
    ["Loss", "mean cross entropy", (scores) => scores.loss],
  ];
  const PARTS = [["validation", 2, 1], ["train", 1.25, 0.45]]; // part, width and opacity of its line
  const LOOKS = { reference: ["solid", "circle"], candidate: ["dashed", "diamond"] };

  const sides = Object.keys(LOOKS).filter((side) => runs.some((run) => run.side === side));
  const epochs = Math.max(...runs.map((run) => run.history.length));
  const several = new Set(runs.map((run) => run.seed)).size > 1;

  function curves(caption, note, value) {
    const lines = runs.flatMap((run) => PARTS.map(([part, width, opacity]) => ({ run, part, width, opacity })));
    return chart(caption, note, (c) => ({
      grid: { left: 46, right: 14, top: 16, bottom: 36 },
      tooltip: tip(c, ({ seriesName, dataIndex, value: seen }) => [`${seriesName}, epoch ${dataIndex + 1}`, figure(Number(seen), 4)]),
      xAxis: axis(c, { type: "category", data: [...Array(epochs).keys()].map((n) => n + 1), splitLine: { show: false }, name: "epoch", nameGap: 22 }),
      yAxis: axis(c, { type: "value", scale: true, axisLabel: { color: c.dim, fontSize: 11, formatter: (seen) => figure(seen, 3) } }),
      series: lines.map(({ run, part, width, opacity }) => ({
        name: `${run.side}${several ? `, seed ${run.seed}` : ""}, ${part}`, type: "line", symbol: LOOKS[run.side][1],
        data: run.history.map((epoch) => ({ value: value(epoch[part]), symbolSize: part === "validation" && epoch.epoch === run.best ? 13 : 5 })),
        lineStyle: { color: c[run.side], type: LOOKS[run.side][0], width, opacity }, itemStyle: { color: c[run.side], opacity },
      })),
    }), sides.map((side) => [`${side}: strong in validation, pale in training`, side, LOOKS[side][0]]));
  }

  document.querySelector('[data-part="curves"]').append(...CURVES.map((curve) => curves(...curve)));

  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    document.querySelectorAll("details").forEach((one) => { one.open = true; });
    document.querySelectorAll(".chart").forEach((box) => box.draw());
    scale(true);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    scale(false);
    repaint();
  });
})();
