"""Nearest neighbours in the pooled features of a ResNet, on an ImageNet-style folder.

Nothing is trained: the training images are the neighbours that vote on each test image. Not in
the paper. A leaf says the depth.
"""

stage = 'downstream'  # whose `build` fills this config in
task = 'probe'
backbone_file = ''
data_root = 'data/imagenet'  # holds train/<class>/ and val/<class>/
skip_unusable = False  # leave out images that are truncated, empty and the like
image_size = 224
loader = dict(batch_size=64, num_workers=8)  # change no result
neighbours = 20
temperature = 0.07  # of the neighbours' weights
paper = dict(metric='top1_accuracy')
model = dict(
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(3,),
        deep_stem=False,
        avg_down=False,
        style='pytorch',
        norm_eval=True,
    ),
)
