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
  const factor = document.getElementById("factor");
  const show = () => {
    const times = `×${2 ** factor.value}`;
    document.body.classList.toggle("differing", difference.checked);
    document.body.style.setProperty("--factor", 2 ** factor.value);
    factor.setAttribute("aria-valuetext", times);
    factor.nextElementSibling.value = times;
  };
  difference.addEventListener("change", show);
  factor.addEventListener("input", () => {
    difference.checked = true;
    show();
  });
  show();
}

// 1:1: one pixel of the picture is one of the screen; larger if it fits. All lie in one place; the chosen two take turns.
const MILLISECONDS_OF_A_BLINK = 500;
const dialog = document.querySelector("dialog");
if (dialog) {
  const [box, blink, zoom] = [".actual", ".blink", ".zoom"].map((name) => dialog.querySelector(name));
  const choices = [...dialog.querySelectorAll(".choice")];
  let [at, size, timer] = [0, 1, null];
  const show = (chosen) => {
    at = chosen;
    choices.forEach((choice, number) => choice.setAttribute("aria-pressed", number === at));
    [...box.children].forEach((picture, number) => {
      picture.style.visibility = number === at ? "visible" : "hidden";
      picture.style.width = `${(size * picture.getAttribute("width")) / devicePixelRatio}px`;
    });
    zoom.textContent = `${size}:1`;
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    blink.setAttribute("aria-pressed", false);
  };
  const start = () => {
    const kind = document.querySelector(".over :checked")?.value;
    const pair = { fewer: [0, 2], both: [2, 1] }[kind] ?? [0, 1]; // those left and right of the divider
    timer = setInterval(() => show(at === pair[0] ? pair[1] : pair[0]), MILLISECONDS_OF_A_BLINK);
    blink.setAttribute("aria-pressed", true);
  };
  const choose = (number) => {
    stop();
    show(number);
  };
  choices.forEach((choice, number) => choice.addEventListener("click", () => choose(number)));
  blink.addEventListener("click", () => (timer === null ? start() : stop()));
  zoom.addEventListener("click", () => {
    size = size === 8 ? 1 : 2 * size;
    show(at);
  });
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (key === "b") blink.click();
    if (key === "z") zoom.click();
    if (choices[key - 1]) choose(key - 1);
  });
  for (const pair of document.querySelectorAll(".pair")) {
    const open = () => {
      document.getElementById("shown").textContent = pair.querySelector(".heading").textContent;
      const pictures = pair.querySelectorAll(".stage img:not([hidden])");
      box.replaceChildren(...[...pictures].map((picture) => picture.cloneNode()));
      dialog.showModal();
      const fits = (times) => times * pictures[0].getAttribute("width") <= box.clientWidth * devicePixelRatio
        && times * pictures[0].getAttribute("height") <= 0.7 * innerHeight * devicePixelRatio;
      size = [8, 4, 2].find(fits) ?? 1;
      show(0);
    };
    pair.querySelector(".open").addEventListener("click", open);
    pair.querySelector(".stage").addEventListener("dblclick", open);
  }
}

for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
      const value = (row) => Number(row.cells[column].dataset.value);
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => order * (value(a) - value(b))));
    });
  });
}

// A video: one frame of each is shown at a time, so that they stay in step.
const FRAMES_PER_SECOND = 8; // as in the file of all side by side
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
