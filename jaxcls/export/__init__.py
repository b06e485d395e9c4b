"""Export a trained run as a folder for other programs.

`writing` writes the folder: the file of a format, model.json and example.py. It checks the
file against the logits of the model. `facts` makes the content of model.json; `formats`
holds one module for each format, and their table FORMATS.
"""
