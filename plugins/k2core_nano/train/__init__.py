"""How the embedded model is made, from an empty folder to its evaluation. Needs the extra ``train``; every command has --help.

1. Generate. Questions are drawn from grammars (the modules of `wordings`, put together by `phrasing`), put into a world whose
   tools fail as planned (`world`), solved by a perfect policy (`oracle`) and encoded (`wire`). A family is a module:
   arithmetic, conversions, facts, sorting, reports, search, chains, code, unseen (tools that no other question has) and
   declines; `mix` says how often each comes. Nothing is stored: a seed gives one endless stream (`documents`). Read some first;
   what stands between ⟦ and ⟧ is what the model learns to write::

       python -m k2core_nano.train.preview --documents 3

2. Tokenizer. Chosen from generated conversations. The two files are shipped; write them anew only when the grammars or the
   specification change, because a new vocabulary asks for a new model. The generator encodes with those in ``vocabulary``,
   which ``--out`` left away replaces::

       python -m k2core_nano.train.tokenizer --out FOLDER

3. Train. Two processes for so many seconds, checkpoints every three minutes; a signal stops it, ``--resume`` goes on.
   `training` is one step (`feeding` its documents, `model` its passes, `optimisers` its update), `running` the loop around it,
   `checkpoints` the file, `probe` says per family how far it has come::

       python -m k2core_nano.train.trainer --out RUN --seconds 5400
       python -m k2core_nano.train.probe --checkpoint RUN/latest.pt
       python -m k2core_nano.train.trainer --out RUN --seconds 5400 --resume RUN/latest.pt

   ``--device cuda`` takes one GPU instead (`trainer` has a command; not tested on a GPU yet), for which ``--feeders N`` more
   processes generate. A checkpoint goes on with any device, precision and number of feeders, and with the same ``--optimizer``.

   Without a checkpoint, ``--weights MODEL`` goes on from exported weights of the same vocabulary with fresh optimisers. (The
   shipped weights were trained on version 2 of the episode, with a smaller vocabulary of their own.)

4. Export. To a Hugging Face folder with INT4 routed experts; the token ids are those of `tokenizer.CONTROL`. The folder is
   whole once the tokenizer's two files stand in it::

       python -m k2core_nano.train.export --checkpoint RUN/latest.pt --out MODEL --bos 3008 --eos 3010 --pad 3071
       cp plugins/k2core_nano/train/vocabulary/* MODEL/

5. Evaluate. Fresh questions with names, numbers and phrasings that training never draws, through the whole agent::

       k2 eval nano --model MODEL --count 40
"""
