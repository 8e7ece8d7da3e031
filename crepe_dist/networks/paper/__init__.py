"""The convolutional network of Zhang, Zhao & LeCun 2015."""
