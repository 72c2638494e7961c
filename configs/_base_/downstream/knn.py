"""k-NN on the pooled features of a ResNet, for an ImageNet-style folder; not in the paper.

Nothing is trained: the nearest training images vote on the class of each test image. Each config
that inherits this sets the depth.
"""

stage = 'downstream'  # the package whose `build.py` completes this config
task = 'probe'
backbone_file = ''
data_root = 'data/imagenet'  # holds train/<class>/ and val/<class>/
skip_unusable = False  # True: skip images that cannot be used, such as truncated ones
image_size = 224
loader = dict(batch_size=64, num_workers=8)  # these change no result
neighbours = 20
temperature = 0.07  # a neighbour's vote has the weight exp(cosine similarity / temperature)
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
