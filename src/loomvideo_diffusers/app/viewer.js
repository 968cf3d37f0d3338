// Shows source and result of one video, in which they stand side by side: as one picture with a line that is moved over
// it, or beside each other. One video for both means that they cannot get out of step.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const divide = element.querySelector("[name=divide]");
const time = element.querySelector("[name=time]");
const play = element.querySelector("[name=play]");
const sound = element.querySelector("[name=sound]");
const beside = element.querySelector("[name=beside]");
let media = null;
let isPair = false;

function draw() {
  if (!media) return;
  const width = media.videoWidth || media.naturalWidth;
  const height = media.videoHeight || media.naturalHeight;
  if (!width) return;
  const half = isPair ? width / 2 : width;
  const isBeside = isPair && beside.getAttribute("aria-pressed") === "true";
  // Small frames are scaled up, so that the line between them stays thin.
  const scale = Math.max(1, Math.round(480 / height));
  const [columns, rows] = [scale * (isBeside ? width : half), scale * height];
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns;
    canvas.height = rows;
    element.querySelector(".viewer").classList.toggle("wide", columns > 1.2 * rows);
  }
  if (!isPair || isBeside) {
    context.drawImage(media, 0, 0, columns, rows);
    return;
  }
  context.drawImage(media, half, 0, half, height, 0, 0, columns, rows);
  const edge = Math.round(columns * divide.value / 100);
  if (edge > 0) context.drawImage(media, 0, 0, edge / scale, height, 0, 0, edge, rows);
  if (edge > 0 && edge < columns) {
    context.fillStyle = "white";
    context.fillRect(edge - 1, 0, 2, rows);
  }
}

function showPlaying() {
  const isPlaying = !media.paused;
  play.textContent = isPlaying ? "Pause" : "Play";
}

function load() {
  if (media && media.pause) media.pause();
  const value = props.value || {};
  element.querySelector(".viewer").hidden = !value.path;
  media = null;
  if (!value.path) return;
  isPair = value.is_pair;
  divide.parentElement.hidden = !isPair;
  beside.hidden = !isPair;
  for (const control of [time.parentElement, play, sound]) control.hidden = !value.is_video;
  const address = "gradio_api/file=" + value.path.split("/").map(encodeURIComponent).join("/");
  canvas.setAttribute("aria-label", value.label);
  if (!value.is_video) {
    media = new Image();
    media.onload = draw;
    media.src = address;
    return;
  }
  const video = document.createElement("video");
  Object.assign(video, {loop: true, muted: true, playsInline: true, preload: "auto", src: address});
  media = video;
  sound.setAttribute("aria-pressed", "false");
  const follow = () => {
    if (media !== video || !element.isConnected) {
      video.pause();
      return;
    }
    draw();
    if (document.activeElement !== time && video.duration) time.value = 1000 * video.currentTime / video.duration;
    next(follow);
  };
  // Where a browser can tell, only new frames are drawn.
  const next = (call) => video.requestVideoFrameCallback ? video.requestVideoFrameCallback(call) : requestAnimationFrame(call);
  video.onplay = video.onpause = showPlaying;
  video.onloadeddata = () => {
    showPlaying();
    follow();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  };
}

element.addEventListener("input", (event) => {
  if (event.target === divide) draw();
  if (event.target === time && media) {
    media.pause();
    media.currentTime = media.duration * time.value / 1000;
  }
});
element.addEventListener("click", (event) => {
  if (event.target === play) media.paused ? media.play() : media.pause();
  if (event.target === sound) {
    media.muted = !media.muted;
    sound.setAttribute("aria-pressed", String(!media.muted));
  }
  if (event.target === beside) {
    const isBeside = beside.getAttribute("aria-pressed") === "true";
    beside.setAttribute("aria-pressed", String(!isBeside));
    divide.parentElement.hidden = !isBeside;
    draw();
  }
});
canvas.addEventListener("pointermove", (event) => {
  if (!isPair || beside.getAttribute("aria-pressed") === "true") return;
  if (event.pointerType === "mouse" && event.buttons === 0) return;
  const box = canvas.getBoundingClientRect();
  divide.value = 100 * (event.clientX - box.left) / box.width;
  draw();
});
window.addEventListener("run", () => media && media.pause && media.pause());
watch("value", load);
load();
