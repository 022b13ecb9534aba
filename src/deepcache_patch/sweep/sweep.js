{
  const chosen = document.getElementById("chosen");
  const plain = [...document.querySelectorAll("#reference figure")];
  const points = [...document.querySelectorAll("a.point")];

  // Beside the curve: the card of a point, and before each of its results the plain one.
  function show(id) {
    const card = document.getElementById(id);
    if (!card || chosen.dataset.now === id) return;
    chosen.dataset.now = id;
    chosen.replaceChildren(...[...card.children].map((each) => each.cloneNode(true)));
    for (const figure of chosen.querySelectorAll("figure[data-number]")) {
      const before = plain[figure.dataset.number].cloneNode(true);
      before.querySelector("figcaption").textContent = "plain";
      figure.before(before);
    }
    for (const point of points) point.classList.toggle("on", point.getAttribute("href") === `#${id}`);
  }

  for (const point of points) {
    const id = point.getAttribute("href").slice(1);
    for (const kind of ["mouseenter", "focus"]) point.addEventListener(kind, () => show(id));
    point.addEventListener("click", (event) => { event.preventDefault(); show(id); });
  }
  chosen.hidden = false;
  show(chosen.dataset.first);
}
