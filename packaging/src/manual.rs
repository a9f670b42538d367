//! Manual pages: of the programs and their commands, by clap_mangen from the same definitions as `--help`; of the
//! configuration files, from the table of settings.
//!
//! The exit codes are those of `docs/reference/cli.md`.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use engine::config::catalogue::{SettingInfo, catalogue};

use crate::{Product, Result};

const CLI_PAGE: &str = include_str!("../../docs/reference/cli.md");
const SOURCE: &str = concat!("TeeSQL ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "TeeSQL";

/// The pages of a package: file name and text.
pub(crate) fn pages(product: &Product) -> Result<Vec<(String, Vec<u8>)>> {
    let mut program = product.command.clone().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    command_pages(&program, product, &mut pages)?;
    pages.push((
        format!("{}.5", configuration_name(product)),
        configuration_page(product).to_roff().into_bytes(),
    ));
    Ok(pages)
}

/// The page of `command`, and those of its subcommands.
fn command_pages(
    command: &Command,
    product: &Product,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let shown = |command: &&Command| !command.is_hide_set();
    for subcommand in command.get_subcommands().filter(shown) {
        command_pages(subcommand, product, pages)?;
    }
    let mut command = command.clone();
    // Otherwise it would list a hundred flags.
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    let man = Man::new(command.override_usage(usage))
        .source(SOURCE)
        .manual(MANUAL);
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut more = Roff::new();
    exit_status(&mut more)?;
    files(&mut more, product);
    see_also(&mut more, product, &man.get_filename());
    more.to_writer(&mut page)?;
    pages.push((man.get_filename(), page));
    Ok(())
}

/// The table of the section "Exit codes".
fn exit_status(roff: &mut Roff) -> Result<()> {
    let section = CLI_PAGE.split_once("\n## Exit codes\n");
    let section = section.and_then(|(_, rest)| rest.split("\n## ").next());
    let rows = section
        .unwrap_or_default()
        .lines()
        .skip_while(|line| !line.starts_with("| --- "));
    let rows: Vec<_> = rows
        .skip(1)
        .filter_map(|line| {
            line.strip_prefix("| ")?
                .strip_suffix(" |")?
                .split_once(" | ")
        })
        .collect();
    if rows.len() < 8 {
        return Err("docs/reference/cli.md: the table of exit codes was not found".into());
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in rows {
        item(roff, [bold(code)], [roman(meaning)]);
    }
    Ok(())
}

fn files(roff: &mut Roff, product: &Product) {
    roff.control("SH", ["FILES"]);
    for (path, description) in product.files {
        item(roff, [italic(*path)], [roman(*description)]);
    }
}

fn see_also(roff: &mut Roff, product: &Product, own: &str) {
    let name = product.command.get_name();
    let pages = [
        (name.to_owned(), "1"),
        (configuration_name(product), "5"),
        ("systemctl".to_owned(), "1"),
    ];
    let others = pages
        .iter()
        .filter(|(name, section)| format!("{name}.{section}") != own);
    let mut line = Vec::new();
    for (name, section) in others {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(name), roman(format!("({section})"))]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text(line);
}

fn item(roff: &mut Roff, heading: impl Into<Vec<Inline>>, text: impl Into<Vec<Inline>>) {
    roff.control("TP", []);
    roff.text(heading);
    roff.text(text);
}

/// The name of the page about the configuration file, without its section.
fn configuration_name(product: &Product) -> String {
    format!("{}.toml", product.command.get_name())
}

fn configuration_page(product: &Product) -> Roff {
    let name = configuration_name(product);
    let program = product.command.get_name();
    let mut roff = Roff::new();
    roff.control("TH", [name.as_str(), "5", "", SOURCE, MANUAL]);
    // Not justified: paths and lists of names leave lines with too few spaces for that.
    roff.control("ad", ["l"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - configuration of {program}"))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic(format!("/{}", product.configuration))]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "A TOML file that the flag --config or the variable TEESQL_CONFIG names. The value of a setting comes from one of \
         these places; a later one overrides an earlier one: the default, the file, the environment variable, the flag. \
         All mistakes are reported together, and an unknown key is one of them.",
    )]);
    roff.control("PP", []);
    roff.text([roman(
        "BOOL is true or false. TIME is a duration with its units, such as 500ms or 1h 30m. A value with … is a list, \
         separated by commas. A secret is named by a file, which only its owner may read (mode 0600), or root and a group \
         (0640); line ends at its end are ignored.",
    )]);
    roff.control("SH", ["SETTINGS"]);
    let mut topic = "";
    for setting in catalogue(product.scope) {
        if setting.topic != topic {
            topic = setting.topic;
            roff.control("SS", [topic]);
        }
        setting_item(&mut roff, &setting);
    }
    files(&mut roff, product);
    see_also(&mut roff, product, &format!("{name}.5"));
    roff
}

fn setting_item(roff: &mut Roff, setting: &SettingInfo) {
    let heading = [bold(&setting.key), roman(" = "), italic(&setting.value)];
    let mut text = vec![roman(setting.help)];
    if let Some(default) = setting.default {
        text.extend([roman(" Default: "), bold(default), roman(".")]);
    }
    if setting.reloadable {
        text.push(roman(" SIGHUP applies a new value."));
    }
    let names = |names: &[String]| names.join(", ");
    text.push(roman(format!(
        " [{}; {}]",
        names(&setting.variables),
        names(&setting.flags)
    )));
    item(roff, heading, text);
}
