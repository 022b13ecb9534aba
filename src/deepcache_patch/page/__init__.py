"""The page in the browser that tries settings. Needs gradio.

`app` is the page: `fields` are its settings, `result` is what came of them, `gallery` what was
tried; `serving` serves it, `markup` is its HTML, app.css its style and app.js its script. Without
gradio: `runner` does what a button is pressed for, `watch` counts and stops it, `history` keeps it,
`card` knows the model's own values. The report and the Python of a comparison are in `compare`.
"""
