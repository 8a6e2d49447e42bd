-- Documents with other columns of their own: a text of 2 kB that does not compress away, and a jsonb.
insert into krai_core.documents (filename, body, attributes)
select n || '.pdf', (
        select left(string_agg(translate(encode(sha512(convert_to(n || ' ' || k, 'UTF8')), 'base64'), E'\n', ''), ''), 2000)
        from generate_series(1, 23) k),
    jsonb_build_object('language', 'de', 'pages', n %% 400 + 1, 'source', md5(n::text))
from generate_series(%(after)s::bigint + 1, %(upto)s) n
