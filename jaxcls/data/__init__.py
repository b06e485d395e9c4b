"""Reads images from disk into host batches, and prepares datasets.

`sources` opens a dataset. `selection` and `splits` choose examples. `decode` turns bytes
into pixels, and `batches` makes the batch of any step. `preparing` writes a dataset: an
importer lists the files, `clean` repairs each file, which `stills` opens, and `writer`
writes the shards. `convert` copies a TFDS dataset. `files` walks over folders of images
for every command.
"""
