"""What is there, and what has happened, in words and tables. Changes nothing, runs no pipeline.

`branches` says what each branch leaves out and costs, counted on the weightless `outline` of a
U-Net; `description` is what `print(helper)` shows. The counts themselves are kept in `running`.
"""
