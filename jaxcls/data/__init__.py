"""Images from disk to host batches, and how datasets are prepared.

`sources` opens a dataset, `selection` and `splits` choose examples, `decode` makes pixels
of bytes, and `batches` gives the batch of any step. `preparing` writes a dataset from what
`importers` find.
"""
