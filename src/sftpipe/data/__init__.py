"""A file to finished rows.

Each module, with what goes in and what comes out:

    source.py         DatasetConfig        -> Source: the Rows of each split, and their digest
    readers.py        files, function      -> StoredRows of each split
    hub_sets.py       a hub set            -> the same
    text_files.py     a file, compressed   -> lines; errors name file and line
    encoding_guess.py bytes, no UTF-8      -> the encodings that they may be of, for messages
    json_files.py     JSON                 -> rows
    json_layouts.py   one JSON object      -> the layout of the table that it holds, for messages
    csv_files.py      CSV                  -> rows
    arrow_rows.py     Parquet, Arrow       -> rows, less the nulls that Arrow filled them with
    stored.py         rows                 -> StoredRows: JSON texts on disk, known by their content
    fetch.py          URL                  -> a file in the cache
    user_code.py      dotted path          -> a user's function, from the allowed packages
    row_function.py   Rows                 -> Rows of what format.function returned
    rows.py           Rows, before encoding; Part and Dropped, after it
    row_chain.py      a raw row            -> a sample -> an encoded row
    formats.py        a row                -> Conversation, PromptCompletion or Text
    messages.py       turns, fields        -> the same, checked
    layouts.py        rows of any file     -> what they look like, and what to type
    control_tokens.py a chat template      -> the tokens that open and end turns in it, and tags
    cleaning.py       a text               -> without markers and special tokens of its own
    samples.py        the three kinds of sample
    chat_template.py  Conversation         -> text, and where its answers are
    encode.py         a sample             -> Encoded: input_ids and labels
    segments.py       segments of a text   -> Tokens: ids, and where their characters are
    answer_spans.py   an answer, tokens    -> the tokens that are trained
    characters.py     a text               -> the error of a character that would be lost
    prompts.py        a sample             -> what generation is given in place of its answer
    truncation.py     Encoded              -> Encoded that fits sft.max_length
    labels.py         ids, spans           -> labels
    encode_split.py   RowEncoder           -> Part, from the cache where it was made before
    packing.py        rows                 -> packed rows; rows -> batches
    prepare.py        sources, encoder     -> the rows of each split: the steps of the spine
    version.py        code, libraries      -> digest of the code that decides ids and labels

preflight/ checks the finished rows. A format knows rows and no tokenizer, the encoder knows
tokenizers and no rows.
"""
