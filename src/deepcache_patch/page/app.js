// gradio's handle between two pictures knows the mouse only: the arrow keys become moves of it. Its
// pictures have no words for those who do not see them.
new MutationObserver(() => {
  for (const handle of document.querySelectorAll("[data-testid=slider]:not([tabindex])")) {
    handle.tabIndex = 0;
    handle.role = "slider";
    handle.ariaLabel = "where the plain picture ends";
  }
  document.querySelectorAll("#pictures img").forEach((picture, second) => {
    const name = second ? "picture with the helper" : "plain picture";
    if (picture.alt !== name) picture.alt = name;
  });
  const shown = document.querySelector("#figures [data-shown]")?.dataset.shown;
  for (const point of document.querySelectorAll("#plot [data-try]"))
    point.ariaCurrent = point.dataset.try === shown;
}).observe(document.documentElement, {childList: true, subtree: true});
// Each pixel of a small picture stays a sharp square, as in a report.
document.addEventListener("load", ({target}) => {
  if (target.matches?.("#pictures img, #difference img"))
    target.toggleAttribute("data-small", Math.min(target.naturalWidth, target.naturalHeight) < 160);
}, true);
document.addEventListener("keydown", event => {
  const handle = event.target.closest("[data-testid=slider]");
  const side = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!handle || !side) return;
  event.preventDefault();
  const {left, width, top, height} = handle.getBoundingClientRect();
  let clientX = left + width / 2;
  const mouse = (kind, target) => target.dispatchEvent(
    new MouseEvent(kind, {view: window, bubbles: true, clientX, clientY: top + height / 2}));
  mouse("mousedown", handle);
  clientX += side * handle.parentElement.clientWidth / 20;
  mouse("mousemove", window);
  mouse("mouseup", window);
});
// A try that is brought back: on a narrow page its result is far above the row or point.
window.showResult = () => document.getElementById("strip").scrollIntoView({block: "nearest"});
