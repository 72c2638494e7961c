"""What all pretraining has in common: the method's settings, the model, SGD with Nesterov."""

stage = 'pretrain'  # whose ``build`` fills this config in
task = 'classification'
data_seed = None  # of the order and augmentation of the images; None: the run's seed
# Another run's network as the only teacher; ``network`` is empty if it is of the student's kind.
teacher = dict(network={}, checkpoint=None)
initial = dict(network={}, checkpoint=None)  # the smaller network that Net2Net starts from
keep_epochs = []  # epochs whose training state is kept as kept_<epoch>.pth
# The settings that BL, SE, SD and the methods they are compared with may differ in.
algorithm = dict(
    name='',  # of the method, for tables
    generations=1,  # K equal mini-generations, or a list of their lengths in epochs
    teacher_weight=0.0,  # λT; 0: no teacher
    temperature=1.0,  # T
    label_weight=None,  # λS beside a teacher; None: 1 + λT/T (Section 4.1)
    symmetric=False,  # T softens the student as well (Section 3.3.3)
    fresh_student=False,  # K whole generations of `epochs`, each beginning with new weights
    confidence_penalty=0.0,  # of the first generation of a tolerant teacher (reference [49])
    taught_after=0,  # of another teacher than Eqn 4's: the epochs before it teaches; else L_1
    # The teacher within a run: copies of the student at the ends of the mini-generations (Eqn 4),
    copy_every=None,  # or every so many iterations,
    lag=None,  # which teach when they are so many iterations old (None: 1),
    decay=None,  # the last one or, from 0 to 1, a moving average of them
    features={},  # a loss of pretrain/feature_losses.py, alone in the first mini-generation
    schedule='cosine',  # or 'one_cycle' or 'linear'; a list has one for each mini-generation
    rates=None,  # α_k for each mini-generation, as multiples of optim_wrapper.optimizer.lr
)
model = dict(
    type='SnapshotClassifier',
    compiled=False,  # torch.compile
    data_preprocessor=dict(type='ImgDataPreprocessor'),
)
paper = dict(metric='top1_error')  # and what the paper reports for a row
val_evaluator = dict(type='TopKError', collect_device='gpu')  # by messages, not through files
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
)
train_cfg = dict(type='MicroBatchTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
