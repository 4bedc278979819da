"""Readers on small files of the true formats, and the generator of worlds."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from helpers import refuses

from jaxrec import data


def test_movielens_1m(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::3::4::978302109\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    movies = [
        "1193::One Flew: Over (1975)::Drama",
        "3::Les Mis\xe9rables\x85 (1995)::Drama|Musical",
        "4::Untitled::(no genres listed)\n",
    ]
    (tmp_path / "movies.dat").write_bytes("\n".join(movies).encode("latin-1"))
    frames = data.read_movielens(tmp_path)
    assert frames.interactions.to_numpy().tolist() == [[1, 1193, 5, 978300760], [2, 3, 4, 978302109]]
    assert frames.users["occupation"].tolist() == [10, 16] and frames.users["zip"].tolist() == ["48067", "70072"]
    assert frames.items["title"].tolist()[1] == "Les Misérables\x85 (1995)"
    assert frames.items["year"].tolist()[:2] == [1975.0, 1995.0] and np.isnan(frames.items["year"][2])
    assert frames.items["genres"].tolist() == ["Drama", "Drama|Musical", ""]
    assert data.Encoder.fit(frames.interactions, frames.schema, users=frames.users, items=frames.items).sizes.user_dense


def test_movielens_10m(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::73::3.5::978300760\n2::73::4::978302109\n")
    (tmp_path / "movies.dat").write_bytes("73::Mis\xe9rables, Les (1995)::Drama\n".encode())
    frames = data.read_movielens(tmp_path)
    assert frames.users is None and frames.interactions["rating"].tolist() == [3.5, 4.0]
    assert frames.items["title"].tolist() == ["Mis\xe9rables, Les (1995)"] and frames.items["year"].tolist() == [1995]


def test_movielens_latest(tmp_path):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,1029,3.0,1260759179\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n31,Dangerous Minds (1995),Drama\n1029,"Dumbo, the (1941)",Animation|Children\n'
    )
    frames = data.read_movielens(tmp_path)
    assert frames.users is None and frames.schema.user_features == ()
    assert frames.interactions["rating"].tolist() == [2.5, 3.0] and frames.items["year"].tolist() == [1995, 1941]


def test_movielens_100k(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n186|39|F|executive|00000\n")
    flags = ["0"] * 19
    comedy = flags.copy()
    comedy[5] = "1"
    both = comedy.copy()
    both[8] = "1"
    (tmp_path / "u.item").write_text(
        f"242|Kolya (1996)|24-Jan-1997||http://x/|{'|'.join(comedy)}\n302|L.A. (1997)|01-Jan-1997||http://y/|{'|'.join(both)}\n"
    )  # fmt: skip
    frames = data.read_movielens(tmp_path)
    assert frames.items["genres"].tolist() == ["Comedy", "Comedy|Drama"]
    assert frames.users["age"].tolist() == [49, 39] and len(frames.interactions) == 2


def test_movielens_files_that_are_cut_or_missing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No MovieLens release in"):
        data.read_movielens(tmp_path)
    with pytest.raises(FileNotFoundError, match="Expected a file or folder"):
        data.read_movielens(tmp_path / "nowhere")
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n")
    (tmp_path / "movies.dat").write_text("1193::One Flew\n")
    with pytest.raises(ValueError, match=r"Line 1 of movies.dat has 2 fields between '::', expected 3"):
        data.read_movielens(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_amazon_reviews(tmp_path, compressed):
    lines = [
        {"reviewerID": "A2", "asin": "0001", "overall": 5.0, "unixReviewTime": 1252800000, "reviewText": "good"},
        {"user_id": "B", "parent_asin": "B00", "asin": "B01", "rating": 1.0, "timestamp": 1588687728923},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    path = tmp_path / ("reviews.json.gz" if compressed else "reviews.json")
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    frames = data.read_amazon_reviews(path)
    assert frames.interactions.to_numpy().tolist() == [
        ["A2", "0001", 5.0, 1252800000],
        ["B", "B00", 1.0, 1588687728923],
    ]
    assert frames.schema.item == "item_id"


@pytest.mark.parametrize("line", ["{'reviewerID': 1}", '{"reviewerID": "A"}', "[1, 2]", '{"overall": '])
def test_a_line_that_is_no_review_is_named(tmp_path, line):
    good = json.dumps({"reviewerID": "A", "asin": "1", "overall": 5.0, "unixReviewTime": 1})
    (tmp_path / "reviews.json").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match="Line 2 of reviews.json is no Amazon review"):
        data.read_amazon_reviews(tmp_path / "reviews.json")


def test_goodbooks(tmp_path):
    (tmp_path / "ratings.csv").write_text("user_id,book_id,rating\n1,258,5\n2,4081,4\n")
    (tmp_path / "books.csv").write_text(
        "book_id,goodreads_book_id,authors,original_publication_year,title,language_code,average_rating\n"
        '258,11,"Ann Lee, Bo Ray",2008.0,First,eng,4.3\n4081,22,Cy,,Second,,4.1\n'
    )
    frames = data.read_goodbooks(tmp_path)
    assert list(frames.items.columns) == ["book_id", "title", "authors", "year", "language"]
    (tmp_path / "tags.csv").write_text("tag_id,tag_name\n7,fantasy\n8,to-read\n9,rare\n")
    (tmp_path / "book_tags.csv").write_text("goodreads_book_id,tag_id,count\n11,7,500\n11,8,900\n11,9,3\n")
    frames = data.read_goodbooks(tmp_path)
    assert frames.items["tags"].tolist()[0] == ["to-read", "fantasy"]
    assert data.read_goodbooks(tmp_path, max_tags=1).items["tags"].tolist()[0] == ["to-read"]
    assert data.read_goodbooks(tmp_path, min_tag_count=3).items["tags"].tolist()[0] == ["to-read", "fantasy", "rare"]
    assert data.read_goodbooks(tmp_path, min_tag_count=501).items["tags"].tolist()[0] == ["to-read"]
    features = (data.Labels("authors", ","), data.Labels("tags"))
    schema = data.Schema(user="user_id", item="book_id", target="rating", item_features=features)
    encoder = data.Encoder.fit(frames.interactions, schema, items=frames.items)
    assert encoder.features.item_codes["authors"].max() == 3
    (tmp_path / "ratings.csv").write_text("user,book\n1,2\n")
    with pytest.raises(ValueError, match="frame of ratings lacks the column 'user_id'"):
        data.read_goodbooks(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet", ".jsonl"])
def test_tables_by_suffix(tmp_path, suffix):
    frame = pd.DataFrame({"user": [2**40 + 5, 2], "item": ["a", "b"]})
    path = tmp_path / f"table{suffix}"
    {
        ".parquet": lambda: frame.to_parquet(path),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
    }.get(suffix, lambda: frame.to_csv(path, index=False))()
    read = data.read_table(path)
    assert read["user"].tolist() == [2**40 + 5, 2] and read["item"].tolist() == ["a", "b"]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match="Expected a .csv, .tsv, .parquet or .jsonl file, got 'table.xlsx'"):
        data.read_table(tmp_path / "table.xlsx")


# The generator


def test_the_same_seed_makes_the_same_world():
    options = {"source_users": 50, "target_users": 40, "source_items": 20, "target_items": 20}
    one, two, other = (data.generate(seed=seed, **options) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one.target.interactions, two.target.interactions)
    assert not one.target.interactions.equals(other.target.interactions)


def test_domains_share_users_and_no_items(world):
    source, target = set(world.source.users["user"]), set(world.target.users["user"])
    assert len(source) == 300 and len(target) == 200 and len(source & target) == 140
    assert not set(world.source.items["item"]) & set(world.target.items["item"])
    assert world.target.interactions.groupby(["user", "item"]).size().max() == 1
    assert world.target.interactions.groupby("user").size().min() >= 2


def test_popularity_is_planted_and_long_tailed():
    shares = []
    for zipf in (0.0, 0.8, 1.6):
        world = data.generate(seed=0, zipf=zipf, source_users=1000, source_items=200, target_users=50, target_items=20)
        counts = world.source.interactions["item"].value_counts()
        shares.append(counts.iloc[:20].sum() / counts.sum())
        planted = pd.Series(world.source_truth.popularity, index=world.source_truth.items.ids)
        if zipf:
            assert np.corrcoef(planted, np.log1p(counts.reindex(planted.index, fill_value=0)))[0, 1] > 0.7
    assert shares[0] < shares[1] < shares[2] and shares[2] > 2 * shares[0]


def test_taste_and_the_number_of_factors_are_planted_as_stated():
    options = {"seed": 0, "source_users": 3000, "source_items": 20, "target_users": 10, "target_items": 20}
    for taste, factors in ((0.0, 8), (1.0, 4), (3.0, 5)):
        truth = data.generate(taste=taste, factors=factors, **options).source_truth
        assert truth.user_factors.shape == (3000, factors) and truth.item_factors.shape == (20, factors)
        assert truth.user_factors.std() * factors**0.5 == pytest.approx(taste, rel=0.1)


@pytest.mark.parametrize("transferable", [0.0, 0.5, 1.0])
def test_the_stated_share_of_taste_transfers(transferable):
    world = data.generate(seed=0, transferable=transferable, source_users=3000, target_users=3000, shared_users=1.0,
                          source_items=20, target_items=20)  # fmt: skip
    ours, theirs = world.source_truth.user_factors, world.target_truth.user_factors
    correlation = np.mean([np.corrcoef(ours[:, j], theirs[:, j])[0, 1] for j in range(ours.shape[1])])
    assert correlation == pytest.approx(transferable**0.5, abs=0.05)


@pytest.mark.parametrize("content", [0.0, 0.4, 1.0])
def test_the_stated_share_of_an_item_is_in_its_content(content):
    world = data.generate(seed=0, content=content, source_items=3000, source_users=10, target_users=10, target_items=20)
    vectors = np.stack(world.source.items["content"].tolist())
    factors = world.source_truth.item_factors
    fitted = vectors @ np.linalg.lstsq(vectors, factors, rcond=None)[0]
    assert fitted.var() / factors.var() == pytest.approx(content, abs=0.05)


def test_the_truth_ranks_best(world, parts):
    import jaxrec

    oracle = jaxrec.evaluate(world.target_truth.scores, parts.test, seen=parts.train)
    popular = jaxrec.evaluate(jaxrec.coldstart.popularity(parts.train), parts.test)
    assert oracle["ndcg@10"] > 1.3 * popular["ndcg@10"]
    with pytest.raises(ValueError, match="ids that are not in it"):
        world.target_truth.scores([5], ["film-00001"])


def test_ratings_follow_taste(rated_world):
    frame, truth = rated_world.target.interactions, rated_world.target_truth
    user, item = truth.users.encode(frame["user"]) - 1, truth.items.encode(frame["item"]) - 1
    taste = (truth.user_factors[user] * truth.item_factors[item]).sum(axis=1)
    assert set(frame["rating"]) <= {1, 2, 3, 4, 5} and np.corrcoef(taste, frame["rating"])[0, 1] > 0.7


@pytest.mark.parametrize("options", [{"transferable": 1.2}, {"content": -0.1}, {"target_items": 2}])
def test_worlds_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="Expected"):
        data.generate(seed=0, **options)


def test_json_lines_keep_ids_as_they_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"user": "0012", "time": "7"}\n{"user": "12", "time": "8"}\n')
    assert data.read_table(tmp_path / "a.jsonl")["user"].tolist() == ["0012", "12"]


def test_truncated_files_are_refused(tmp_path):
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n1\t2\t")
    (tmp_path / "u.user").write_text("1|20|M|artist|12345\n")
    (tmp_path / "u.item").write_text("2|A (1990)|||" + "|0" * 19 + "\n")
    with pytest.raises(ValueError, match="Line 2 of the ratings in .* lacks a value.*truncated"):
        data.read_movielens(tmp_path)
    latest = tmp_path / "latest"
    latest.mkdir()
    (latest / "movies.csv").write_text("movieId,title,genres\n2,A (1990),Drama\n")
    (latest / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.0,4\n1,2,")  # line 1 is the header
    with pytest.raises(ValueError, match="Line 3 of the ratings in .* lacks a value"):
        data.read_movielens(latest)
    whole = gzip.compress(b'{"reviewerID": "a", "asin": "b", "overall": 5.0, "unixReviewTime": 1}\n' * 200)
    for name, content in (("cut.json.gz", whole[:-20]), ("other.json.gz", b"no gzip")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no whole gzip file"):
            data.read_amazon_reviews(tmp_path / name)


def test_leading_zeros_stay_where_they_are_asked_for(tmp_path):
    (tmp_path / "rows.csv").write_text("user,item\n1,0012\n1,12\n")
    assert data.read_table(tmp_path / "rows.csv")["item"].tolist() == [12, 12]
    assert data.read_table(tmp_path / "rows.csv", dtype={"item": str})["item"].tolist() == ["0012", "12"]
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="dtype= is for CSV"):
        data.read_table(tmp_path / "rows.jsonl", dtype={"item": str})
    for kind in (str, "float64"):
        with pytest.raises(ValueError, match="dtype= names the column 'item_id'; rows.csv has user, item. Name one"):
            data.read_table(tmp_path / "rows.csv", dtype={"item_id": kind})
    with refuses(TypeError, "Expected a Mapping for dtype, such as .*, got the class str"):
        data.read_table(tmp_path / "rows.csv", dtype=str)


def test_quotation_marks_of_tab_separated_files_are_text(tmp_path):
    path = tmp_path / "titles.tsv"
    path.write_text('item\ttitle\na\t"Heroes\nb\tHome\nc\t"Ran" again\n')
    assert data.read_table(path)["title"].tolist() == ['"Heroes', "Home", '"Ran" again']
    path.write_text('item\ttitle\na\t"one\ttwo"\n')
    assert data.read_table(path, quoted=True)["title"].tolist() == ["one\ttwo"]
    table = tmp_path / "titles.csv"
    table.write_text('item,title\na,"one, two"\n')
    assert data.read_table(table)["title"].tolist() == ["one, two"]
    with pytest.raises(ValueError, match="quoted= is for CSV and tab-separated files"):
        data.read_table(_written(tmp_path / "rows.jsonl", '{"item": 1}\n'), quoted=True)


@pytest.mark.parametrize("kind", [str, "string", object])
def test_ids_read_as_text_are_missing_only_where_the_cell_is_empty(tmp_path, kind):
    path = _written(tmp_path / "rows.csv", "user,item,r\n1,NA,1\n2,null,\n3,,NA\n4,007,2\n")
    read = data.read_table(path, dtype={"item": kind})
    assert read["item"].isna().tolist() == [False, False, True, False]
    assert read["item"].dropna().tolist() == ["NA", "null", "007"] and read["r"].isna().sum() == 2
    kept = data.clean(read, data.Schema()).frame
    assert kept["item"].tolist() == ["NA", "null", "007"]


def _written(path, text):
    path.write_text(text)
    return path
