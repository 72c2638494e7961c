"""VOC2012 segmentation that also evaluates at image_scale, for small networks.

The prediction is enlarged to the size of the mask.
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
