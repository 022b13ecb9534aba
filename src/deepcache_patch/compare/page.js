"use strict";

// A file that was opened from a disk may have no clipboard of its own: what is selected can be copied.
addEventListener("click", (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const code = button.closest(".code");
  code.querySelector("details").open = true; // what is folded cannot be selected
  getSelection().selectAllChildren(code.querySelector("code"));
  const copied = document.execCommand("copy");
  button.previousElementSibling.value = copied ? "Copied" : "Selected: press Ctrl+C";
});

