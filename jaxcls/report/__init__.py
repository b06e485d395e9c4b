"""Report on runs and studies in one self-contained HTML file.

`gather` reads the folders of runs and studies into the tuples of `contents`; it scores the
models and computes saliency maps (`saliency`). `page.page` draws the tuples: `tables`,
`curves`, `robust`, `studies` and `images` make the sections, `markup` makes the HTML,
`drawing` the charts, and `style` holds CSS and script.
"""
