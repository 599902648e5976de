//! A credential provider plugin as the kubelet runs it, and a docker credential helper: compiled by the tests into a static
//! program. Its arguments select its behaviour; it writes its request and its environment into the file named by `RECORD`.

use std::io::Read;

fn main() {
    let mut asked = String::new();
    std::io::stdin().read_to_string(&mut asked).unwrap();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if let Ok(record) = std::env::var("RECORD") {
        let environment: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
        std::fs::write(record, format!("{asked}\n{}", environment.join("\n"))).unwrap();
    }
    let (user, password) = (variable("PLUGIN_USER"), variable("PLUGIN_PASSWORD"));
    let mut mode = std::env::args().nth(1).unwrap_or_default();
    if mode == "once" {
        let marker = format!("{}.failed", variable("RECORD"));
        let failed = std::path::Path::new(&marker).exists();
        std::fs::write(marker, "").unwrap();
        mode = if failed { "answer" } else { "fail" }.to_owned();
    }
    match mode.as_str() {
        "answer" => println!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"10m","auth":{{"{}":{{"username":"nobody","password":"x"}},"{}":{{"username":"{user}","password":"{password}"}}}}}}"#,
            variable("PLUGIN_GLOB"),
            variable("PLUGIN_REGISTRY")
        ),
        "get" => println!(
            r#"{{"ServerURL":"{}","Username":"{user}","Secret":"{password}"}}"#,
            asked.trim()
        ),
        "fail" => {
            eprintln!("the metadata service is away");
            std::process::exit(3);
        }
        "hang" => std::thread::sleep(std::time::Duration::from_secs(600)),
        _ => println!("<html>this is no answer</html>"),
    }
}
