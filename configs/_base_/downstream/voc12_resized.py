"""VOC2012 segmentation whose images the network sees at image_scale when evaluated, too.

Its prediction is enlarged to the size of the mask. For networks too small for whole images.
"""

_base_ = 'voc12aug.py'

val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', keep_ratio=True),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
