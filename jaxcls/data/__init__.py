"""Images from disk to host batches, and how datasets are prepared.

`sources` opens a dataset, `selection` and `splits` choose examples, `decode` turns bytes
into pixels, and `batches` gives the batch of any step. `preparing` writes a dataset: an
importer lists the files, `clean` repairs each, `writer` writes the shards. `convert` copies
a dataset of TFDS. `files` walks over folders of images for every command.
"""
