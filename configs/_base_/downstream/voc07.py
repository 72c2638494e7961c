"""PASCAL VOC2007 detection: trained on trainval, tested on test, 11-point average precision.

No image is left out, and no box is dropped for its size. 'Difficult' objects are not trained on,
and a detection of one counts neither as right nor as wrong, as in VOC's own evaluation.
"""

data_root = 'data/VOCdevkit'
batch_size = 16  # over all processes
paper = dict(metric='mAP')
train_cfg = dict(type='MicroBatchTrainLoop', max_epochs=10, val_interval=10)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [dict(type='MultiStepLR', milestones=[8], gamma=0.1)]
classes = None  # the names of your object classes; None: VOC's twenty
# Your own lists below data_root, which must then directly contain JPEGImages and Annotations.
train_list = None
val_list = None
drop_invalid_boxes = False  # True: ignore inverted and empty boxes, which are otherwise an error
image_scale = (1000, 600)  # the most pixels of the longer and of the shorter side
scale_range = None  # for a RandomResize in your pipeline: the random factor of image_scale
crop_size = None  # for a RandomCrop
train_dataloader = dict(
    num_workers=4,
    sampler=dict(type='EpochSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='VOCDataset',
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='VOCDataset',
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', keep_ratio=True),
            # After Resize, so that the boxes stay those of the original image.
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    ),
)
val_evaluator = dict(
    type='VOCMetric',
    metric='mAP',
    eval_mode='11points',
    collect_device='gpu',  # collect results by communication, not through files
)
val_cfg = dict(type='ValLoop')
