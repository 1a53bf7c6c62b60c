"""A run as people look at it: its page, its story in words, and several runs beside each other.

Each module, with what goes in and what comes out:

found.py     a folder             -> Found: what it holds, as far as it can be read
curves.py    the log              -> Curves over steps, epochs and tokens
draw.py      Curves, numbers      -> inline SVG in the colours of the page
loss_png.py  RunFolder            -> loss.png, for the model card
story.py     Found                -> one sentence, the end of a terminal, what to type next
sections.py  Found                -> what each section of the page shows
page.py      a folder             -> report.html
watch.py     a running run        -> report.html, every minute
compare.py   several folders      -> comparison.html
base.jinja, run.jinja, comparison.jinja, parts.jinja, page.css, page.js: the page itself.
"""
