//! PNG pictures, made smaller.

use std::io::Cursor;

/// The PNG picture `original`, 8 bits RGB, at most as large as it is, `width` pixels wide: each pixel the mean of those
/// that it stands for.
pub fn shrunk(original: &[u8], width: u32) -> Result<Vec<u8>, String> {
    let mut reader = png::Decoder::new(Cursor::new(original)).read_info().map_err(|error| error.to_string())?;
    let size = reader.output_buffer_size().ok_or("the picture is too large")?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    if info.color_type != png::ColorType::Rgb || info.bit_depth != png::BitDepth::Eight {
        return Err("the picture is not RGB".to_owned());
    }
    if !(1..=info.width).contains(&width) {
        return Err(format!("a width from 1 to {}", info.width));
    }
    let height = (info.height * width / info.width).max(1);
    let mut small = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        let rows = y * info.height / height..(y + 1) * info.height / height;
        for x in 0..width {
            let columns = x * info.width / width..(x + 1) * info.width / width;
            let count = rows.len() as u32 * columns.len() as u32;
            for colour in 0..3 {
                let of = |row: u32, column: u32| u32::from(pixels[((row * info.width + column) * 3 + colour) as usize]);
                let sum: u32 = rows.clone().map(|row| columns.clone().map(|column| of(row, column)).sum::<u32>()).sum();
                small.push((sum / count) as u8);
            }
        }
    }
    let mut made = Vec::new();
    let mut encoder = png::Encoder::new(&mut made, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(&small).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())?;
    Ok(made)
}
