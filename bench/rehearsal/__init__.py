"""Rehearses CUDA code on a machine without a GPU: the train step of every variant is compiled for a card and run on
FakeTensors, which have shapes and no numbers. The launches and their bytes are counted.
"""
