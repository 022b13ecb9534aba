"use strict";

// The divider: the range input is for keys and screen readers, the whole picture for the pointer.
for (const stage of document.querySelectorAll(".stage")) {
  const slider = stage.querySelector(".slider");
  const show = () => stage.style.setProperty("--at", `${slider.value}%`);
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  };
  slider.addEventListener("input", show);
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    slider.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  show(); // a reloaded page keeps the values of its inputs
}

const difference = document.getElementById("difference");
if (difference) {
  const show = () => document.body.classList.toggle("differing", difference.checked);
  document.body.style.setProperty("--factor", difference.dataset.factor);
  difference.addEventListener("change", show);
  show();
}

// A video: one frame of each is shown at a time, so that they stay in step.
const FRAMES_PER_SECOND = 8;
for (const player of document.querySelectorAll(".player")) {
  const pair = player.closest(".pair");
  const kinds = ["plain", "cached", "fewer"].map((kind) => [...pair.querySelectorAll(`.stage .${kind}`)]);
  const frames = kinds.filter((row) => row.length > 0);
  const [button, place, number] = [...player.children];
  let timer = null;
  const show = () => {
    for (const row of frames) row.forEach((frame, at) => (frame.hidden = at !== place.value - 1));
    number.value = `${place.value} / ${place.max}`;
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const play = () => {
    button.textContent = "Pause";
    timer = setInterval(() => {
      place.value = (place.value % place.max) + 1;
      show();
    }, 1000 / FRAMES_PER_SECOND);
  };
  button.addEventListener("click", () => (timer === null ? play() : pause()));
  place.addEventListener("input", () => {
    pause();
    show();
  });
  const strip = pair.querySelector(".strip");
  strip.addEventListener("toggle", () => {
    if (strip.querySelector("div")) return;
    for (const row of frames) {
      const line = document.createElement("div");
      for (const frame of row) {
        const copy = frame.cloneNode();
        copy.hidden = false;
        line.append(copy);
      }
      strip.append(line);
    }
  });
  show();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}
