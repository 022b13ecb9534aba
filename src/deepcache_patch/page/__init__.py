"""The page in the browser that tries settings. Needs gradio.

`app` is the page, `markup` its HTML, `trial` what it does when a button is pressed, without gradio.
The report that a comparison writes is in `compare`.
"""
