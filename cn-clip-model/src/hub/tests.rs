use std::{fs, path::Path};

use super::*;

/// A hub that looks in `folder` only and asks a server that is not there.
fn hub(folder: &Path) -> Hub {
    Hub {
        folders: vec![folder.to_path_buf()],
        cache: None,
        // Port 9 discards; nobody listens to it.
        endpoint: "http://127.0.0.1:9".to_string(),
        offline: false,
        progress: false,
    }
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_published_model_has_a_repository() {
    let names: Vec<&str> = REPOSITORIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, published_models());
    let error = hub(Path::new("none")).find("ViT-X").unwrap_err().to_string();
    assert!(error.contains("ViT-X") && error.contains("ViT-L-14-336"), "{error}");
}

#[test]
fn folders_are_searched_in_order_then_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, cache) =
        (dir.path().join("first"), dir.path().join("second"), dir.path().join("hub"));
    let mut hub = hub(&first);
    hub.folders.push(second.clone());
    hub.cache = Some(cache.clone());
    // As `huggingface_hub` lays it out, with weights that `transformers` has fetched.
    let repository = cache.join("models--OFA-Sys--chinese-clip-rn50");
    let snapshot = repository.join("snapshots").join("abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs").join("main"), "abc").unwrap();
    fs::write(snapshot.join("pytorch_model.bin"), "").unwrap();
    assert_eq!(hub.find("RN50").unwrap(), snapshot.join("pytorch_model.bin"));
    fs::write(snapshot.join("clip_cn_rn50.pt"), "").unwrap();
    let found = hub.find("RN50").unwrap();
    assert_eq!(found, snapshot.join("clip_cn_rn50.pt"));
    // Nothing of ours goes into a cache that belongs to others.
    assert_eq!(hub.record("RN50", &found), first.join("clip_cn_rn50.bpk"));
    for folder in [&second, &first] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("clip_cn_rn50.pt"), "").unwrap();
        let found = hub.find("RN50").unwrap();
        assert_eq!(found, folder.join("clip_cn_rn50.pt"));
        assert_eq!(hub.record("RN50", &found), folder.join("clip_cn_rn50.bpk"));
    }
}

#[test]
fn without_a_network_the_error_says_which_file_to_put_where() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("weights");
    for hub in [hub(&folder), hub(&folder).with_offline(true)] {
        let error = hub.find("ViT-L-14-336").unwrap_err().to_string();
        let place = folder.join("clip_cn_vit-l-14-336.pt").display().to_string();
        let page = "https://huggingface.co/OFA-Sys/chinese-clip-vit-large-patch14-336px";
        assert!(error.contains(&place) && error.contains(page), "{error}");
    }
    let homeless = Hub { folders: Vec::new(), ..hub(&folder) };
    let error = homeless.find("RN50").unwrap_err().to_string();
    assert!(error.contains("CN_CLIP_HOME"), "{error}");
}

#[cfg(feature = "download")]
mod downloads {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::hub::server::{Behaviour, Server};

    fn body() -> Vec<u8> {
        (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn server(cuts: &[usize]) -> Server {
        let (body, etag) = (body(), sha256(&body()));
        Server::start(Behaviour { body, etag, cuts: cuts.to_vec(), status: None })
    }

    fn at(server: &Server, folder: &Path) -> Hub {
        Hub { endpoint: format!("{}/", server.endpoint), ..hub(folder) }
    }

    #[test]
    fn a_fresh_file_comes_whole_and_is_not_fetched_twice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        let server = server(&[]);
        let hub = at(&server, &folder);
        for _ in 0..2 {
            let path = hub.find("ViT-B-16").unwrap();
            assert_eq!(path, folder.join("clip_cn_vit-b-16.pt"));
            assert_eq!(fs::read(&path).unwrap(), body());
        }
        assert_eq!(server.content_requests(), ["0"]);
        assert_eq!(names(&folder), ["clip_cn_vit-b-16.pt"]);
    }

    #[test]
    fn cut_connections_are_taken_up_where_they_ended() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(&[100_000, 150_000]);
        let path = at(&server, dir.path()).find("ViT-B-16").unwrap();
        assert_eq!(fs::read(path).unwrap(), body());
        assert_eq!(server.content_requests(), ["0", "100000", "250000"]);
    }

    #[test]
    fn what_came_before_the_server_went_away_is_kept_for_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let first = server(&[123_456, 0]);
        let error = at(&first, dir.path()).find("ViT-B-16").unwrap_err().to_string();
        assert!(error.contains("clip_cn_vit-b-16.pt"), "{error}");
        assert_eq!(names(dir.path()), [download::STAGING]);
        let second = server(&[]);
        let path = at(&second, dir.path()).find("ViT-B-16").unwrap();
        assert_eq!(fs::read(path).unwrap(), body());
        assert_eq!(second.content_requests(), ["123456"]);
    }

    #[test]
    fn partial_files_that_are_whole_or_too_long_do_no_harm() {
        for length in [300_000, 300_001] {
            let dir = tempfile::tempdir().unwrap();
            let blobs = dir.path().join(download::STAGING);
            let blobs = blobs.join("models--OFA-Sys--chinese-clip-vit-base-patch16/blobs");
            fs::create_dir_all(&blobs).unwrap();
            let mut bytes = body();
            bytes.resize(length, 0);
            fs::write(blobs.join(format!("{}.part", sha256(&body()))), bytes).unwrap();
            let server = server(&[]);
            let path = at(&server, dir.path()).find("ViT-B-16").unwrap();
            assert_eq!(fs::read(path).unwrap(), body());
            assert_eq!(server.content_requests().len(), length - 300_000);
        }
    }

    #[test]
    fn a_wrong_checksum_is_an_error_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let etag = sha256(b"something else");
        let server = Server::start(Behaviour { body: body(), etag, ..Behaviour::default() });
        for _ in 0..2 {
            let error = at(&server, dir.path()).find("ViT-B-16").unwrap_err().to_string();
            assert!(error.contains("SHA-256") && error.contains("try again"), "{error}");
            assert!(!dir.path().join("clip_cn_vit-b-16.pt").exists());
        }
        // The damaged bytes are not taken for a beginning.
        assert_eq!(server.content_requests(), ["0", "0"]);
    }

    #[test]
    fn refusals_and_absurd_answers_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |status| Server::start(Behaviour { status, ..Behaviour::default() });
        for (server, hint) in [
            (refusal(Some("404 Not Found")), "404"),
            (refusal(Some("503 Service Unavailable")), "503"),
            (refusal(Some("200 OK")), "missing"),
            (Server::start(Behaviour { etag: "../../x".into(), ..server_of_one_byte() }), "../x"),
        ] {
            let error = at(&server, dir.path()).find("ViT-B-16").unwrap_err().to_string();
            let place = dir.path().join("clip_cn_vit-b-16.pt").display().to_string();
            assert!(error.contains(hint) && error.contains(&place), "{error}");
            assert!(server.content_requests().is_empty());
        }
    }

    fn server_of_one_byte() -> Behaviour {
        Behaviour { body: vec![1], ..Behaviour::default() }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let server = server(&[]);
        let error = at(&server, &file.join("folder")).find("ViT-B-16").unwrap_err().to_string();
        assert!(error.contains("cannot be written"), "{error}");
    }
}

mod records {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::checkpoint::{Checkpoint, parameters};

    /// The recorded tiny model as a published file would lie in a folder, and its configuration.
    fn published(folder: &Path) -> (PathBuf, ClipConfig) {
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/train_run");
        let json = fs::read(recorded.join("meta.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let source = folder.join("clip_cn_vit-b-16.pt");
        fs::copy(recorded.join("init_fp16.pt"), &source).unwrap();
        (source, serde_json::from_value(json["model_config"].clone()).unwrap())
    }

    fn values(clip: &Clip) -> Vec<f32> {
        clip.text_projection.val().into_data().try_into_vec().unwrap()
    }

    fn load(source: &Path, config: &ClipConfig) -> Result<Clip, ModelError> {
        record::load(source, &source.with_extension("bpk"), config, config, &Device::default())
    }

    fn set_time(path: &Path, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_record_is_made_once_and_then_read() {
        let dir = tempfile::tempdir().unwrap();
        let (source, config) = published(dir.path());
        set_time(&source, 1_000_000_000);
        let expected = values(&load(&source, &config).unwrap());
        assert_eq!(names(dir.path()), ["clip_cn_vit-b-16.bpk", "clip_cn_vit-b-16.pt"]);
        let record = dir.path().join("clip_cn_vit-b-16.bpk");
        let model = Clip::init(&config, &Device::default(), 0);
        let keys = Checkpoint::open(&record).unwrap().state_dict.len();
        assert_eq!(keys, parameters(&model).len());
        // The official file is not even opened.
        fs::write(&source, "damaged").unwrap();
        set_time(&source, 1_000_000_000);
        assert_eq!(values(&load(&source, &config).unwrap()), expected);
    }

    #[test]
    fn a_stale_record_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (source, config) = published(dir.path());
        let expected = values(&load(&source, &config).unwrap());
        // A record of other weights, of before and of after the file.
        let record = dir.path().join("clip_cn_vit-b-16.bpk");
        let other = Clip::init(&config, &Device::default(), 1);
        use burn::module::Module;
        for seconds in [1_000_000_000, 4_000_000_000] {
            other.clone().save_file(&record).unwrap();
            set_time(&record, seconds);
            assert_eq!(values(&load(&source, &config).unwrap()), expected);
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            assert_eq!(time(&record), time(&source));
        }
    }

    #[test]
    fn a_damaged_record_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (source, config) = published(dir.path());
        let expected = values(&load(&source, &config).unwrap());
        let record = dir.path().join("clip_cn_vit-b-16.bpk");
        let whole = fs::read(&record).unwrap();
        let time = fs::metadata(&source).unwrap().modified().unwrap();
        for damaged in [&whole[..whole.len() / 2], &whole[..20], &b"no record"[..], &[]] {
            fs::write(&record, damaged).unwrap();
            let file = fs::File::options().write(true).open(&record).unwrap();
            file.set_modified(time).unwrap();
            assert_eq!(values(&load(&source, &config).unwrap()), expected);
            assert_eq!(fs::read(&record).unwrap(), whole);
        }
    }

    #[test]
    fn where_no_record_can_be_written_the_file_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (source, config) = published(dir.path());
        // A folder stands where the record would be.
        let record = dir.path().join("clip_cn_vit-b-16.bpk");
        fs::create_dir_all(record.join("inside")).unwrap();
        let clip = load(&source, &config).unwrap();
        let tensor = Checkpoint::open(&source).unwrap();
        assert_eq!(values(&clip), tensor.get("text_projection").unwrap().read().unwrap());
        assert!(record.join("inside").is_dir());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_leaves_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let (source, config) = published(dir.path());
        let bytes = fs::read(&source).unwrap();
        fs::write(&source, &bytes[..bytes.len() / 2]).unwrap();
        let error = load(&source, &config).unwrap_err().to_string();
        assert!(error.contains("clip_cn_vit-b-16.pt"), "{error}");
        assert_eq!(names(dir.path()), ["clip_cn_vit-b-16.pt"]);
    }
}
