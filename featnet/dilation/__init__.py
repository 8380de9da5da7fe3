"""Set an output stride: strides beyond it become dilations, by one rule for every network."""
