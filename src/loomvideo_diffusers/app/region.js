// Lets people say what may change of a clip: painted over it, which holds for all frames, or as a box, which moves if it is
// dragged at several times. The value says which clip is shown, and what may change.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const field = (name) => element.querySelector(`[name=${name}]`);
const [time, play, invert, text] = ["time", "play", "invert", "boxes"].map(field);
const painted = document.createElement("canvas");
const BRUSH = 1 / 24, COLOR = "rgba(255, 0, 64, 0.5)";
let media = null;
let shown = "";
let tool = "brush";
let boxes = [];
let isPainted = false;
let turns = 0;
let start = null;

const seconds = () => (media && media.duration ? media.currentTime : 0);
const size = () => [props.value.width, props.value.height];

function boxAt(moment) {
  const after = boxes.find((box) => box[4] >= moment) || boxes[boxes.length - 1];
  const before = [...boxes].reverse().find((box) => box[4] <= moment) || boxes[0];
  const share = after[4] > before[4] ? (moment - before[4]) / (after[4] - before[4]) : 0;
  return before.slice(0, 4).map((side, index) => Math.round(side + share * (after[index] - side)));
}

function draw() {
  if (!media || !canvas.width) return;
  const over = document.createElement("canvas");
  [over.width, over.height] = [canvas.width, canvas.height];
  const layer = over.getContext("2d");
  if (isPainted) layer.drawImage(painted, 0, 0, over.width, over.height);
  if (boxes.length) {
    const [width, height] = size();
    const [x, y, w, h] = boxAt(seconds());
    layer.fillRect(x * over.width / width, y * over.height / height, w * over.width / width, h * over.height / height);
  }
  if (invert.checked && (isPainted || boxes.length)) {
    layer.globalCompositeOperation = "xor";
    layer.fillRect(0, 0, over.width, over.height);
  }
  layer.globalCompositeOperation = "source-in";
  layer.fillStyle = COLOR;
  layer.fillRect(0, 0, over.width, over.height);
  context.drawImage(media, 0, 0, canvas.width, canvas.height);
  context.drawImage(over, 0, 0);
}

// What is painted is sent as a picture. Until it has arrived, the value says so; what came after it counts, and not it.
async function tell() {
  const turn = ++turns;
  const several = boxes.length > 1;
  const said = boxes.map((box) => box.slice(0, 4).join(",") + (several ? `@${+box[4].toFixed(3)}` : ""));
  const value = {...props.value, boxes: said, mask: null, invert: invert.checked, is_pending: isPainted};
  text.value = said.join(" ");
  props.value = value;
  if (isPainted) {
    const white = document.createElement("canvas");
    [white.width, white.height] = [painted.width, painted.height];
    const layer = white.getContext("2d");
    layer.drawImage(painted, 0, 0);
    layer.globalCompositeOperation = "source-in";
    layer.fillStyle = "white";
    layer.fillRect(0, 0, white.width, white.height);
    layer.globalCompositeOperation = "destination-over";
    layer.fillStyle = "black";
    layer.fillRect(0, 0, white.width, white.height);
    let mask = null;
    try {
      const blob = await new Promise((done) => white.toBlob(done, "image/png"));
      mask = await upload(new File([blob], "mask.png", {type: "image/png"}));
    } catch {
      return;
    }
    if (turn !== turns || !mask) return;
    props.value = {...value, mask, is_pending: false};
  }
  element.dataset.told = JSON.stringify({boxes: said, isPainted, invert: value.invert});
}

function clear() {
  boxes = [];
  isPainted = false;
  painted.getContext("2d").clearRect(0, 0, painted.width, painted.height);
}

function choose(name) {
  tool = name;
  for (const one of ["brush", "eraser", "box"]) field(one).setAttribute("aria-pressed", String(one === name));
}

function load() {
  const value = props.value || {};
  element.querySelector(".region").hidden = !value.shown;
  element.querySelector(".none").hidden = Boolean(value.shown);
  if ((value.shown || "") === shown) return;
  shown = value.shown || "";
  turns += 1;
  if (media && media.pause) media.pause();
  media = null;
  clear();
  [text.value, invert.checked, time.value] = ["", false, 0];
  if (!shown) return;
  const address = "gradio_api/file=" + shown.split("/").map(encodeURIComponent).join("/");
  const begin = (width, height) => {
    const scale = Math.max(1, Math.round(320 / height));
    [canvas.width, canvas.height] = [scale * width, scale * height];
    [painted.width, painted.height] = [canvas.width, canvas.height];
    draw();
  };
  time.parentElement.hidden = play.hidden = !value.is_video;
  if (!value.is_video) {
    const picture = new Image();
    picture.onload = () => { media = picture; begin(picture.naturalWidth, picture.naturalHeight); };
    picture.src = address;
    return;
  }
  const video = document.createElement("video");
  Object.assign(video, {loop: true, muted: true, playsInline: true, preload: "auto", src: address});
  video.onplay = video.onpause = () => { play.textContent = video.paused ? "Play" : "Pause"; };
  video.onloadeddata = () => { media = video; begin(video.videoWidth, video.videoHeight); };
  video.onseeked = draw;
  const follow = () => {
    if (media !== video || !element.isConnected) return video.pause();
    draw();
    time.value = 1000 * video.currentTime / video.duration;
    if (!video.paused) requestAnimationFrame(follow);
  };
  video.addEventListener("play", follow);
}

// Where a pointer is, as shares of the picture
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share) => Math.min(1, Math.max(0, share)));
}

function paint(from, to) {
  const layer = painted.getContext("2d");
  layer.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  [layer.lineWidth, layer.lineCap] = [2 * BRUSH * Math.max(painted.width, painted.height), "round"];
  layer.beginPath();
  layer.moveTo(from[0] * painted.width, from[1] * painted.height);
  layer.lineTo(to[0] * painted.width, to[1] * painted.height);
  layer.stroke();
  isPainted = true;
}

function setBox(from, to) {
  const [width, height] = size();
  const [left, right] = [from[0], to[0]].sort((a, b) => a - b).map((share) => Math.round(share * width));
  const [top, bottom] = [from[1], to[1]].sort((a, b) => a - b).map((share) => Math.round(share * height));
  const moment = seconds();
  boxes = boxes.filter((box) => Math.abs(box[4] - moment) > 0.02);
  if (right > left && bottom > top) boxes.push([left, top, right - left, bottom - top, moment]);
  boxes.sort((a, b) => a[4] - b[4]);
}

canvas.addEventListener("pointerdown", (event) => {
  if (!media || (tool === "eraser" && !isPainted)) return;
  if (media.pause) media.pause();
  canvas.setPointerCapture(event.pointerId);
  start = place(event);
  if (tool === "box") {
    if (isPainted) clear();
  } else {
    boxes = [];
    paint(start, start);
  }
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!start) return;
  const to = place(event);
  if (tool === "box") {
    setBox(start, to);
  } else {
    paint(start, to);
    start = to;
  }
  draw();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (start) tell();
    start = null;
  });
}
element.addEventListener("click", (event) => {
  if (["brush", "eraser", "box"].includes(event.target.name)) choose(event.target.name);
  if (event.target === play && media) media.paused ? media.play() : media.pause();
  if (event.target.name === "clear") {
    clear();
    draw();
    tell();
  }
});
element.addEventListener("input", (event) => {
  if (event.target !== time || !media) return;
  media.pause();
  media.currentTime = media.duration * time.value / 1000;
});
element.addEventListener("change", (event) => {
  if (event.target === invert) {
    draw();
    tell();
  }
  if (event.target === text) {
    clear();
    const parts = text.value.split(/\s+/).map((part) => part.match(/^(\d+),(\d+),(\d+),(\d+)(?:@([\d.]+))?$/));
    boxes = parts.filter(Boolean).map((match) => match.slice(1).map((number) => Number(number || 0)));
    boxes.sort((a, b) => a[4] - b[4]);
    draw();
    tell();
  }
});
window.addEventListener("run", () => media && media.pause && media.pause());
watch("value", load);
load();
