"""How the embedded model is made, from an empty folder to its evaluation. Needs the extra ``train``; every command has --help.

1. Generate. Questions are drawn from grammars (`wordings`, `fact_wordings`, `phrasing`), put into a world whose tools fail as
   planned (`world`), solved by a perfect policy (`oracle`) and encoded (`wire`). Nothing is stored: a seed gives one endless
   stream (`documents`). Read some first; what stands between ⟦ and ⟧ is what the model learns to write::

       python -m k2core_nano.train.preview --documents 3

2. Tokenizer. Chosen from generated conversations. The two files are shipped; write them anew only when the grammars or the
   specification change, because a new vocabulary asks for a new model. They replace the shipped ones with ``--out`` left away,
   and the generator always encodes with the shipped ones::

       python -m k2core_nano.train.tokenizer --out FOLDER

3. Train. Two processes for so many seconds, checkpoints every three minutes; a signal stops it, ``--resume`` goes on.
   `training` is one step, `running` the loop around it, `checkpoints` the file, `probe` says per family how far it has come::

       python -m k2core_nano.train.trainer --out RUN --seconds 5400
       python -m k2core_nano.train.probe --checkpoint RUN/latest.pt
       python -m k2core_nano.train.trainer --out RUN --seconds 5400 --resume RUN/latest.pt

   Without a checkpoint, ``--weights plugins/k2core_nano/weights`` goes on from the shipped weights with fresh optimisers.

4. Export. To a Hugging Face folder with INT4 routed experts; the token ids are those of `tokenizer.CONTROL`. The folder is
   whole once the tokenizer's two files stand in it::

       python -m k2core_nano.train.export --checkpoint RUN/latest.pt --out MODEL --bos 1472 --eos 1474 --pad 1535
       cp plugins/k2core_nano/weights/tiktoken.model plugins/k2core_nano/weights/tokenizer_config.json MODEL/

5. Evaluate. Fresh questions with names, numbers and phrasings that training never draws, through the whole agent::

       k2 eval nano --model MODEL --count 40
"""
