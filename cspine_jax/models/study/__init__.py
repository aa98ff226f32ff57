"""Networks that read a whole study, or one vertebra of it, at once: one file a model.

Three shapes of input, each with a mask of what is there (None: everything):
    slices     `[B, T, H, W, C]`, mask `[B, T]`: a study's T slices evenly spaced from its first to its last, or the S
               positions of one vertebra, each with C channels (neighbouring slices, mask);
    vertebrae  `[B, 7, S, H, W, C]`, mask `[B, 7, S]`: all seven of a study, an absent one masked;
    volume     `[B, D, H, W, C]`, mask `[B, D]`: read by 3D networks, D of any length.
In evaluation padding is exact: a study answers the same alone, padded, and in any batch. In training, padded slices
stay out of all batch statistics, too; `encoder.SliceEncoder` says how.
"""
