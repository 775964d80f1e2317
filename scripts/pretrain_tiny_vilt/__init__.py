"""How the tiny backbone in ``atlas_dist/model/assets/tiny_vilt`` was made.

Three commands, each of which reads what the one before left under ``--work`` (never in the repository):

    python -m scripts.pretrain_tiny_vilt.build     draw, decode and tokenise everything once, as memory-mapped arrays
    python -m scripts.pretrain_tiny_vilt.train     pretrain, with checkpoints; the same command resumes
    python -m scripts.pretrain_tiny_vilt.export    write config, weights and tokenizer into the package
    python -m scripts.pretrain_tiny_vilt.probe     what the frozen backbone is worth on carved-up *training* data of the tasks

No task's data is read by the first three: not CIFAR-10, TREC, easy-VQA, Omniglot or NLVR.
"""
