// Drawings, as shapes of SVG in a square of 20. They are part of the code so that they do not vanish with the server.

const SVG = "http://www.w3.org/2000/svg";

const SHAPES = {
  key: [["circle", { cx: "6.5", cy: "13.5", r: "3.5" }], ["path", { d: "M9 11l7.5-7.5M13.5 6l2.5 2.5" }]],
  auto: [
    ["circle", { cx: "10", cy: "10", r: "6.5" }],
    ["path", { d: "M10 3.5a6.5 6.5 0 0 1 0 13z", fill: "currentColor" }],
  ],
  light: [
    ["circle", { cx: "10", cy: "10", r: "3.5" }],
    ["path", { d: "M10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1"
      + "M4.3 15.7l1.1-1.1M14.6 5.4l1.1-1.1" }],
  ],
  dark: [["path", { d: "M16.5 11.8A7 7 0 0 1 8.2 3.5a7 7 0 1 0 8.3 8.3z" }]],
  keyboard: [
    ["rect", { x: "2", y: "5", width: "16", height: "10.5", rx: "2" }],
    ["path", { d: "M5.2 8.2h.01M8.4 8.2h.01M11.6 8.2h.01M14.8 8.2h.01M6.5 12.2h7" }],
  ],
  copy: [
    ["rect", { x: "7", y: "7", width: "9.5", height: "9.5", rx: "2" }],
    ["path", { d: "M4.5 13A1.5 1.5 0 0 1 3.5 11.5v-6a2 2 0 0 1 2-2h6A1.5 1.5 0 0 1 13 4.5" }],
  ],
  edit: [["path", { d: "M4 16l.8-3.2L13 4.6a1.6 1.6 0 0 1 2.3 2.3l-8.2 8.2z" }]],
  again: [["path", { d: "M16 10a6 6 0 1 1-1.9-4.4M16 3v3.5h-3.5" }]],
  undo: [["path", { d: "M7 4L3.5 7.5 7 11M3.5 7.5H12a4.2 4.2 0 0 1 0 8.5H8" }]],
  check: [["path", { d: "M4 10.5l4 4 8-9" }]],
  clear: [["path", { d: "M4 6h12M8 6V4.5h4V6M5.5 6l.7 9.5h7.6l.7-9.5" }]],
  close: [["path", { d: "M5.5 5.5l9 9M14.5 5.5l-9 9" }]],
  terminal: [
    ["rect", { x: "2.5", y: "4", width: "15", height: "12", rx: "2" }],
    ["path", { d: "M5.5 8l2.5 2-2.5 2M10.5 12.5h4" }],
  ],
};

/** One of the drawings, in the colour of the text around it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  for (const [tag, attributes] of SHAPES[name]) {
    const shape = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    svg.append(shape);
  }
  return svg;
}
