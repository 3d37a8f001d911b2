"""One file restored without loss: inspect it, feed the restored frames to an encoder, verify the result, publish it.

And many files, one by one, each in a process of its own.
"""
