"""Report on runs and studies in one HTML file, which loads nothing else.

`gather` reads the folders of runs and studies into the tuples of `contents`; it scores the
models and computes where they look (`saliency`). `page.page` draws those tuples: `tables`,
`curves`, `robust`, `studies` and `images` make the sections, `markup` makes the HTML,
`drawing` the charts, and `style` holds CSS and script.
"""
