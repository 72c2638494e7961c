"""What all pretraining shares: the method's settings, the model, SGD with Nesterov momentum."""

stage = 'pretrain'  # the package whose `build.py` completes this config
task = 'classification'
data_seed = None  # seed of data order and augmentation; None: the run's seed
# Another run's network as the only teacher. An empty `network` means the student's architecture.
teacher = dict(network={}, checkpoint=None)
initial = dict(network={}, checkpoint=None)  # the smaller network that Net2Net starts from
cuda_graph = False  # on a GPU without micro-batches and model.compiled: fewer launches of kernels
keep_epochs = []  # epochs after which the training state is kept as kept_<epoch>.pth
# The settings that differ between BL, SE, SD and the other methods.
algorithm = dict(
    name='',  # the method's name in tables
    generations=1,  # K equal mini-generations, or a list of their lengths in epochs
    teacher_weight=0.0,  # λT; 0: no teacher
    temperature=1.0,  # T
    label_weight=None,  # λS while there is a teacher; None: 1 + λT/T (Section 4.1)
    symmetric=False,  # True: T also softens the student (Section 3.3.3)
    fresh_student=False,  # True: K whole generations of `epochs`, each from new weights
    confidence_penalty=0.0,  # in the first generation of a tolerant teacher (reference [49])
    taught_after=0,  # epochs before `teacher` or a copy (`copy_every`) teaches; Eqn 4 uses L_1
    # The teacher within a run is a copy of the student. None in all three: Eqn 4.
    copy_every=None,  # iterations between copies; None: copy at the end of each mini-generation
    lag=None,  # the age in iterations from which a copy teaches; None: 1
    decay=None,  # of a moving average of the copies, above 0 and below 1; None: the last copy
    features={},  # a loss of pretrain/feature_losses.py, alone in the first mini-generation
    schedule='cosine',  # or 'one_cycle' or 'linear', or a list with one per mini-generation
    rates=None,  # α_k of each mini-generation, as multiples of optim_wrapper.optimizer.lr
)
model = dict(
    type='SnapshotClassifier',
    compiled=False,  # torch.compile
    data_preprocessor=dict(type='ImgDataPreprocessor'),
)
paper = dict(metric='top1_error')  # configs of the paper's rows add its numbers
val_evaluator = dict(type='TopKError', collect_device='gpu')  # by communication, not through files
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
)
train_cfg = dict(type='MicroBatchTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
