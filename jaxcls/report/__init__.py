"""Report on runs and studies in one self-contained HTML file.

`gather` reads the folders of runs and studies into the records of `contents`; it scores the
models and computes saliency maps (`saliency`). `page.page` fills the templates with them:
`tables` and `studies` give the rows of tables, `charts` the charts, `images` the images.
"""
