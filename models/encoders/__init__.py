"""What computes hidden states; knows no file and no checkpoint's spelling."""
